"""A run's folder: taken by one run alone, and what is said of it wherever the run stops."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import lightning as L
from filelock import FileLock, Timeout  # which PyTorch needs itself
from lightning.pytorch.trainer.states import TrainerFn

from histo_pl.errors import UserError, WriteError
from histo_pl.program import command_line
from histo_pl.stopping import on_stop
from histo_pl.storage import refuse_results, replacing

CONFIG, BEST, LAST = "config.yaml", "best.ckpt", "last.ckpt"
RESULTS = ("results.json", BEST, LAST)  # what tells that a folder is a run's
KEPT = (LAST, BEST, "split.csv", CONFIG)

WORKER_DIED = re.compile(r"DataLoader worker .*(exited unexpectedly|killed by signal)")


@contextmanager
def taken(folder: Path, resume: str | None) -> Iterator[None]:
    """Take a folder for a run, of several at once only for one, and bring what a run that goes on has kept.

    Args:
        folder: Made if it is not there.
        resume: The last.ckpt to go on from; one that lies in the folder is the same run.

    Raises:
        UserError: The folder holds another run's results, or the interrupted run's best weights are gone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"Another run is writing into this folder. Name another run_dir. Received: {folder}") from None
    try:
        if resume is None or Path(resume).parent.resolve() != folder.resolve():
            refuse_results(folder, RESULTS, "run_dir")
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
        with replacing(new) as unfinished:
            shutil.copyfile(old, unfinished)


@contextmanager
def kept_files_named(folder: Path, trainer: L.Trainer) -> Iterator[None]:
    """Say what is kept and how to go on wherever the run stops: at a signal, a full disk, a killed process.

    Args:
        folder: The run's.
        trainer: Knows how far the run is.

    Raises:
        WriteError: A file could not be written.
        UserError: A process that reads tiles was killed.
    """
    on_stop(lambda: _last_words(folder, trainer))
    try:
        yield
        on_stop(lambda: f"The run in {folder} had ended.")
    except WriteError as error:
        raise WriteError(f"{error}. {_last_words(folder, trainer)}") from error
    except OSError as error:
        if not error.strerror:
            raise
        raise WriteError(
            f"The system refused: {error.strerror}. Received: {error.filename}. {_last_words(folder, trainer)}"
        ) from error
    except RuntimeError as error:
        if not WORKER_DIED.search(str(error)):
            raise
        raise UserError(
            f"A process that reads tiles has died ({' '.join(str(error).split())}): most often the memory "
            f"was full. Take fewer of them, data.num_workers=1 or 0, or a smaller data.batch_size. "
            f"{_last_words(folder, trainer)}"
        ) from error


def _last_words(folder: Path, trainer: L.Trainer) -> str:
    """Say how far the run came, what is kept of it, and the command that goes on."""
    epoch, last = trainer.current_epoch, folder / LAST
    reached = f"Epoch {epoch + 1} of {trainer.max_epochs} was not finished."
    if trainer.state.fn == TrainerFn.PREDICTING or epoch >= (trainer.max_epochs or 0):
        reached = f"All {epoch} epochs are trained, the test was not finished."
    if not last.is_file():
        return f"{reached} No checkpoint is in {folder}. Start again with: {_command()}"
    return f"{reached} Kept in {folder}: {', '.join(_kept(folder))}. Go on with: {_command(f'resume={last}')}"


def _kept(folder: Path) -> list[str]:
    return [name for name in KEPT if (folder / name).is_file()]


def _command(*changes: str) -> str:
    return command_line(*changes) or " ".join(["the same settings", *changes])
