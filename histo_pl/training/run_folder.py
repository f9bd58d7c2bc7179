"""A run's folder: claimed by one run alone, and named with the files kept wherever the run stops."""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from histo_pl.errors import UserError, WriteError
from histo_pl.signals import CommandLine, set_stop_message
from histo_pl.storage import atomic_write, refuse_results, try_lock
from histo_pl.training.callbacks import LastCheckpoint
from histo_pl.training.run_files import BEST, CONFIG, LAST, RESULTS

KEPT = (LAST, BEST, "split.csv", CONFIG, "metrics.csv")

WORKER_DIED = re.compile(r"DataLoader worker .*(exited unexpectedly|killed by signal)")


@contextmanager
def claim_run_folder(folder: Path, resume: str | None) -> Iterator[None]:
    """Claim a folder for one run alone, and bring the checkpoints of a run that goes on.

    Args:
        folder: Made if it is not there.
        resume: The last.ckpt to go on from; one that lies in the folder is the same run.

    Raises:
        UserError: The folder holds another run's results, or the interrupted run's best weights are gone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = try_lock(folder / ".lock")
    if lock is None:
        raise UserError(f"Another run is writing into this folder. Name another run_dir. Received: {folder}")
    try:
        if resume is None or Path(resume).parent.resolve() != folder.resolve():
            advice = f" To go on with an interrupted run there, add resume={folder / LAST}."
            refuse_results(folder, RESULTS, "run_dir", advice if (folder / LAST).exists() else "")
            if resume is not None:
                _bring(Path(resume).with_name(BEST), folder / BEST)
                _bring(Path(resume), folder / LAST)
        yield
    finally:
        with suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _bring(old: Path, new: Path) -> None:
    if not old.is_file():
        raise UserError(
            f"The interrupted run's best weights are gone, so this run could not tell which epoch was the "
            f"best. Put the file back. Received: {old}"
        )
    try:
        os.link(old, new)  # half a gigabyte at 512 px; a save replaces the link and leaves the old file alone
    except OSError:
        with atomic_write(new) as unfinished:
            shutil.copyfile(old, unfinished)


@contextmanager
def report_interruption(folder: Path, trainer: L.Trainer, command_line: CommandLine) -> Iterator[None]:
    """Name the files kept and the command that goes on wherever the run stops: a signal, a full disk, a killed process.

    Args:
        folder: The run's.
        trainer: Its epoch is named.
        command_line: Writes this run's command with some keys changed.

    Raises:
        WriteError: A file could not be written.
        UserError: A process that reads tiles was killed.
    """

    def message() -> str:
        return _last_words(folder, trainer, command_line)

    set_stop_message(message)
    try:
        yield
        set_stop_message(lambda: f"The run in {folder} had ended.")
    except WriteError as error:
        _end_progress_bar(trainer)
        raise WriteError(f"{error}. {message()}") from error
    except OSError as error:
        if not error.strerror:
            raise
        _end_progress_bar(trainer)
        raise WriteError(f"The system refused: {error.strerror}. Received: {error.filename}. {message()}") from error
    except RuntimeError as error:
        if not WORKER_DIED.search(str(error)):
            raise
        _end_progress_bar(trainer)
        raise UserError(
            f"A process that reads tiles has died ({' '.join(str(error).split())}): most often the memory "
            f"was full. Take fewer of them, data.num_workers=1 or 0, or a smaller data.batch_size. "
            f"{message()}"
        ) from error


def _end_progress_bar(trainer: L.Trainer) -> None:
    """Begin a new line, where a bar has left the last one open."""
    if trainer.progress_bar_callback is not None:
        print(file=sys.stderr, flush=True)


def _last_words(folder: Path, trainer: L.Trainer, command_line: CommandLine) -> str:
    """Name the epoch reached, the files kept, and the command that goes on."""
    epoch, last = trainer.current_epoch, folder / LAST
    reached = f"Epoch {epoch + 1} of {trainer.max_epochs} was not finished.{_age_of_last(trainer)}"
    if trainer.state.fn == TrainerFn.PREDICTING or epoch >= (trainer.max_epochs or 0):
        reached = f"All {epoch} epochs are trained, the test was not finished."
    if not last.is_file():
        return f"{reached} No checkpoint is in {folder}. Start again with: {command_line() or 'the same settings'}"
    go_on = command_line(f"resume={last}") or f"the same settings and resume={last}"
    return f"{reached} Kept in {folder}: {', '.join(_kept(folder))}. Go on with: {go_on}"


def _age_of_last(trainer: L.Trainer) -> str:
    """Name the epoch of last.ckpt, where it is not the one before."""
    written = [one.epochs for one in trainer.checkpoint_callbacks if isinstance(one, LastCheckpoint)]
    if not written or written[0] is None or written[0] >= trainer.current_epoch:
        return ""
    return f" {LAST} is of epoch {written[0]}, as it takes long to write."


def _kept(folder: Path) -> list[str]:
    return [name for name in KEPT if (folder / name).is_file()]
