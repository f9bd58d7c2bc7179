"""Mistakes in the keys of a command line, in one line and with the key that was probably meant."""

import re
from difflib import get_close_matches

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import CompactHydraException
from omegaconf import OmegaConf

from histo_pl.cli.command_line import CONF

NO_KEY = re.compile(r"Could not override '([^']+)'")
NO_CHOICE = re.compile(r"Could not find '([^']+)/([^']+)'")


def describe_mistake(error: CompactHydraException, program: str) -> str:
    """Write a mistake in the configuration for a person.

    Args:
        error: Hydra's.
        program: Name of the configuration: train, evaluate or predict.

    Returns:
        One line.
    """
    text = str(error)
    key, choice = NO_KEY.search(text), NO_CHOICE.search(text)
    if key:
        near = similar_key(key[1], _known_keys(program))
        expected = f"Did you mean {near}?" if near else f"python {program}.py --cfg job lists all."
        return f"Error: There is no such key. {expected} Received: {key[1]}"
    if choice:
        names = sorted(file.stem for file in (CONF / choice[1]).glob("*.yaml"))
        return (
            f"Error: There is no such choice of {choice[1]}. Expected one of {', '.join(names)}. Received: {choice[2]}"
        )
    reason = reason_of(error).partition(" See https://hydra.cc")[0]
    return f"Error: The command line cannot be read ({reason}). Quote values with special characters: key='value'."


def reason_of(error: Exception) -> str:
    """Write Hydra's own reason in one line, without the folders that it searched.

    Args:
        error: Of a composition.
    """
    return " ".join(str(error.__cause__ or error).split()).partition(" Config search path")[0]


def similar_key(key: str, known: list[str]) -> str | None:
    """Find the known key that resembles one, or whose last part begins with its last part, or resembles it.

    Args:
        key: As typed.
        known: The keys that there are.
    """
    last = key.rpartition(".")[2]
    last_parts = {one: one.rpartition(".")[2] for one in known}
    near = get_close_matches(key, known, 1) or [one for one, part in last_parts.items() if part.startswith(last)]
    closest = get_close_matches(last, last_parts.values(), 1)
    near = near or [one for one, part in last_parts.items() if part in closest]
    return near[0] if near else None


def _known_keys(program: str) -> list[str]:
    from histo_pl.cli.resume import leaves  # it loads the models

    GlobalHydra.instance().clear()  # of the program that failed
    data = ["data=table"] if program in ("train", "evaluate") else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(compose(program, data))
    return [key for key, _ in leaves(config)]
