"""Training from Python: the configuration files of a clone, composed behind one function."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from histo_pl.cli.build import training_arguments
from histo_pl.cli.command_line import CONF, quote
from histo_pl.cli.mistakes import reason_of
from histo_pl.cli.resume import leaves
from histo_pl.errors import UserError
from histo_pl.storage import new_folder, remove_empty_folders
from histo_pl.training.run import run_training


def train(root: str | Path | None = None, recipe: str | Sequence[str] | None = None, **settings: Any) -> dict[str, Any]:  # noqa: ANN401
    r"""Train a classifier on a folder of tiles, as train.py does, and write the run's folder.

    `train("tiles", recipe="linear_probe", data={"group_regex": r"patient\d+"}, seed=1)` is
    `python train.py experiment=linear_probe data=folder data.root=tiles data.group_regex='patient\d+' seed=1`.

    Args:
        root: The folder of tiles, or a zip file of it; None: the synthetic demo.
        recipe: A file of conf/experiment, such as `linear_probe` or `finetune`, or several; None: the defaults.
        **settings: Keys of conf/train.yaml. A mapping sets the keys below it; a text chooses a group's file
            (`model="resnet18"`). `data` is `folder` unless a text is given; `run_dir` is outputs/DAY/TIME unless given.

    Returns:
        The contents of results.json; `["run"]["checkpoint"]` is the path of the model.

    Raises:
        UserError: The data or a setting is not as expected, or this is no clone with the folder conf.
    """
    if not CONF.is_dir():
        raise UserError(
            f"Training needs the configuration files of a clone, which a wheel does not have. Clone the repository and "
            f"install it with pip install -e . Received: no folder {CONF}"
        )
    given = {"data": "demo"} if root is None else {"data": "folder", "data.root": str(root)}
    given |= {"experiment": recipe} if recipe else {}
    given |= dict(_flatten(settings))
    config = _compose(given)
    if "run_dir" not in given:
        config.run_dir = new_folder("outputs/%Y-%m-%d/%H-%M-%S")
    try:
        return run_training(**training_arguments(config))
    finally:
        remove_empty_folders()


def _compose(given: Mapping[str, Any]) -> DictConfig:
    overrides = [_override(key, value) for key, value in given.items()]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            config = compose("train", overrides, return_hydra_config=True)
        except (ConfigCompositionException, ValueError) as error:
            raise UserError(
                f"A setting is not as expected ({reason_of(error)}).{_suggestion(given)} Received: {dict(given)}"
            ) from error
    if config.hydra.mode == RunMode.MULTIRUN:
        experiment = shlex.quote(_override("experiment", given["experiment"]).replace("'", ""))
        raise UserError(
            f"This recipe is a sweep of several runs. Run it by train.py: python train.py {experiment} ... "
            f"Received: recipe={given['experiment']!r}"
        )
    with open_dict(config):
        del config["hydra"]
    return config


def _suggestion(given: Mapping[str, Any]) -> str:
    """Name the keys that unknown ones resemble, whatever group they are in."""
    known = [key for key, _ in leaves(OmegaConf.to_container(compose("train", ["data=folder"])))]
    for key in given:
        if key not in known and not (CONF / key).is_dir() and not key.startswith("data.columns."):
            name = key.rpartition(".")[2]
            near = [one for one in known if one.rpartition(".")[2] == name] or get_close_matches(key, known, 3)
            if near:
                return f" Did you mean {' or '.join(near)} instead of {key}?"
    return ""


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _override(key: str, value: Any) -> str:  # noqa: ANN401
    """Write a setting in Hydra's grammar; a text is taken literally."""
    if key.startswith("data.columns."):
        key = f"++{key}"
    if isinstance(value, str | Path):
        return f"{key}={quote(str(value))}"
    if value is None or isinstance(value, bool | int | float):
        return f"{key}={'null' if value is None else str(value).lower()}"
    return f"{key}=[{','.join(_override('', item).removeprefix('=') for item in value)}]"
