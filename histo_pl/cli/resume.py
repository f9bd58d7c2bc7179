"""Settings of a run that is resumed, compared with those of the interrupted run."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from histo_pl.cli.command_line import quote
from histo_pl.errors import UserError
from histo_pl.training.run_files import BEST, CONFIG, LAST

MULTIRUN = ("-m", "--multirun")
SWEEP = "multirun.yaml"  # Hydra's, in a sweep's folder
OWN_FOLDER = "own"  # resume=own: go on in run_dir, if a run there has not finished
IN_CHECKPOINT = ("optim.", "scheduler.")  # settings that the optimizer's state in the checkpoint brings along
PRECISION = "trainer.precision"
FREE = (  # settings that change no result, or only what comes after the training
    "calibration.",
    "callbacks.",
    "colour_baseline",
    "explain",
    "data.cache",
    "data.columns",
    "data.groups_file",
    "data.num_workers",
    "data.pin_memory",
    "data.prefetch_factor",
    "data.root",
    "data.split_file",
    "embeddings.store.",
    "keep_freed_memory",
    "logger.",
    "model.weights",
    "resume",
    "run_dir",
    "trainer.enable_",
    "trainer.log_every_n_steps",
    "trainer.max_epochs",
)


def go_on_with_sweep(arguments: Sequence[str]) -> list[str]:
    """Rewrite the command line that goes on with a sweep as that of the sweep itself, in its own folder.

    Args:
        arguments: As typed, such as `-m resume=multirun/DAY/TIME`.

    Returns:
        The sweep's own arguments, its jobs going on in their folders; those that were given, if they mean no sweep.

    Raises:
        UserError: Other arguments are given too, or the folder is no sweep's.
    """
    others = [argument for argument in arguments if argument not in MULTIRUN]
    named = [Path(one.removeprefix("resume=")) for one in others if one.startswith("resume=")]
    is_multirun = len(others) < len(arguments)
    if not is_multirun or not named or not named[0].is_dir():
        return list(arguments)
    folder = named[0]
    if len(others) > 1 or not (folder / SWEEP).is_file():
        raise UserError(
            f"A sweep goes on with its own settings. Expected no more than -m resume=multirun/DAY/TIME, a folder with "
            f"{SWEEP}. Received: {' '.join(arguments)}"
        )
    overrides: Any = OmegaConf.load(folder / SWEEP)
    kept = [one for one in overrides.hydra.overrides.task if not one.startswith("resume=")]
    return ["-m", *kept, f"resume={OWN_FOLDER}", f"hydra.sweep.dir={quote(str(folder))}"]


def resolve_resume(resume: str | None) -> str | None:
    """Resolve a run's folder to its last.ckpt.

    Args:
        resume: A last.ckpt, a run's folder, or None.

    Returns:
        The path of the checkpoint, or None.
    """
    return str(Path(resume, LAST)) if resume is not None and Path(resume).is_dir() else resume


def keep_precision(config: DictConfig) -> None:
    """Go on with the interrupted run's precision where no other was asked for, whatever is fast on this machine.

    Args:
        config: As `conf/train.yaml` composes it; its `trainer.precision` is set.
    """
    before = _interrupted_settings(config)
    if before is not None and follows_machine(config):
        config.trainer.precision = OmegaConf.select(before, PRECISION, default=config.trainer.precision)


def follows_machine(config: DictConfig) -> bool:
    """Tell if a run's precision is the one that is fast on this machine, as with trainer=amp."""
    return OmegaConf.is_interpolation(config.trainer, PRECISION.rpartition(".")[2])


def compare_with_interrupted_run(config: DictConfig) -> list[str]:
    """Compare the settings of a resumed run with the config.yaml of the run that it goes on with.

    Args:
        config: As `conf/train.yaml` composes it.

    Returns:
        A warning that names the settings that differ; empty if none does, or nothing is resumed.

    Raises:
        UserError: A setting differs that the checkpoint brings along, such as the learning rate.
    """
    interrupted = _interrupted_settings(config)
    if interrupted is None:
        return []
    before = dict(leaves(OmegaConf.to_container(interrupted)))
    now = dict(leaves(OmegaConf.to_container(config, resolve=True)))
    keys = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    differing = [key for key in keys if not key.startswith(FREE) and not key.endswith("_target_")]
    changes = {key: f"{key}={now.get(key)} (before: {before.get(key)})" for key in differing}
    fixed = [change for key, change in changes.items() if key.startswith(IN_CHECKPOINT)]
    if fixed:
        raise UserError(
            f"The optimizer of a resumed run is its checkpoint's, settings included. Expected the settings of the "
            f"interrupted run; or start a new run from its weights: "
            f"model.weights={Path(config.resume).with_name(BEST)}. Received: {', '.join(fixed)}"
        )
    if not changes:
        return []
    return [f"Resumed with other settings than before, so that the results are of both: {', '.join(changes.values())}."]


def _interrupted_settings(config: DictConfig) -> Any:  # noqa: ANN401
    """Load the config.yaml of the run that is gone on with; None if there is none."""
    file = Path(config.resume).with_name(CONFIG) if config.resume else None
    return OmegaConf.load(file) if file is not None and file.is_file() else None


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    """Yield the plain values of nested settings by their dotted keys.

    Args:
        value: Mappings, lists and plain values.
        key: The dotted key of `value`, empty for the whole.
    """
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{key}.{index}")
    else:
        yield key, value
