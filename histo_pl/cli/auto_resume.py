"""resume=auto and resume=own: one and the same line starts a run, goes on with it, and at last finds it finished."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock
from omegaconf import DictConfig, OmegaConf

from histo_pl.cli.resume import OWN_FOLDER, PRECISION, follows_machine, leaves
from histo_pl.errors import UserError
from histo_pl.models.checkpoint import RUN_FOLDERS
from histo_pl.models.contents import is_finished, read_contents
from histo_pl.storage import is_first_process, try_lock
from histo_pl.training.run_files import BEST, CONFIG, LAST, RESULTS_FILE, read_results

log = logging.getLogger(__name__)

AUTO = "auto"
CHOSEN = "HISTO_PL_RUN"  # in the environment of a distributed run's other processes: folder and checkpoint
OWN = ("resume", "run_dir", "trainer.devices", "trainer.num_nodes")  # settings in which equal runs may differ

_held: list[FileLock] = []  # until this process ends


def follow_auto(config: DictConfig) -> dict[str, Any] | None:
    """Let a configuration go on in its own folder, or with resume=auto in that of the newest run with equal settings.

    Args:
        config: As `conf/train.yaml` composes it. If its `resume` is auto or own, that and `run_dir` are set to those of
            the unfinished run, if there is one; to a new run's otherwise.

    Returns:
        The results of that run where it has finished, so that nothing is left to do; None otherwise.

    Raises:
        UserError: A process with equal settings is at work.
    """
    if config.resume not in (AUTO, OWN_FOLDER):
        return None
    if CHOSEN in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":
        config.run_dir, config.resume = json.loads(os.environ[CHOSEN])
        return None
    is_first = is_first_process()  # of torchrun's and SLURM's, which all choose for themselves
    found = Path(os.path.relpath(config.run_dir))
    if config.resume == AUTO:
        own = (*OWN, PRECISION) if follows_machine(config) else OWN
        settings = _settings(config, own)
        if is_first:
            _lock(settings)
        found = _newest(config, settings, own)
    if found is not None and has_finished(found):
        log.info("Finished already: %s. Nothing is left to do.", found)
        return read_results(found)
    config.resume = None
    if found is not None:
        config.run_dir = str(found)
        config.resume = checkpoint_to_resume(found) if is_first else _checkpoint_of(found)
        log.info("Going on in %s.", found)
    os.environ[CHOSEN] = json.dumps([config.run_dir, config.resume])
    return None


def _settings(config: DictConfig, own: tuple[str, ...]) -> dict[str, Any]:
    """Return all plain values by their keys, but for those that are each run's own."""
    whole: Any = OmegaConf.to_container(config, resolve=True)
    here = str(whole["run_dir"])
    return {
        key: value.removeprefix(here) if isinstance(value, str) else value
        for key, value in leaves(whole)
        if key not in own and not key.endswith(".resume")
    }


def _lock(settings: dict[str, Any]) -> None:
    """Keep other processes with the same settings out until this one ends."""
    name = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
    file = Path(RUN_FOLDERS[0], f".auto-{name}.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = try_lock(file)
    if lock is None:
        raise UserError(
            f"A run with the same settings is at work. Wait for it, or start another without resume=auto. "
            f"Received: resume=auto, and {file} is locked"
        )
    _held.append(lock)


def _newest(config: DictConfig, settings: dict[str, Any], own: tuple[str, ...]) -> Path | None:
    """Find the folder of the newest run with equal settings."""
    files = sorted(set(_configurations(Path(config.run_dir))), key=lambda file: -file.stat().st_mtime)
    for file in files:
        before: Any = OmegaConf.load(file)
        if isinstance(before, DictConfig) and "run_dir" in before and _settings(before, own) == settings:
            return file.parent
    return None


def _configurations(run_dir: Path) -> Iterator[Path]:
    for folder in RUN_FOLDERS:
        yield from Path(folder).glob(f"**/{CONFIG}")
    if (run_dir / CONFIG).is_file():
        yield Path(os.path.relpath(run_dir)) / CONFIG


def has_finished(folder: Path) -> bool:
    """Return whether a folder holds a run that is calibrated and tested."""
    best = folder / BEST
    return best.is_file() and (folder / RESULTS_FILE).is_file() and is_finished(read_contents(best))


def checkpoint_to_resume(folder: Path) -> str | None:
    """Return an unfinished run's last.ckpt; None, its best.ckpt removed, where it stopped in its first epoch."""
    found = _checkpoint_of(folder)
    best = folder / BEST
    if found is None and best.is_file() and not is_finished(read_contents(best)):
        best.unlink()
    return found


def _checkpoint_of(folder: Path) -> str | None:
    return str(folder / LAST) if (folder / LAST).is_file() else None
