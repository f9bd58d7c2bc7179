"""Files: whole or absent at every moment, read without running code, in folders of one run each."""

import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock, Timeout

from histo_pl.errors import UserError, WriteError

_made: list[Path] = []  # the folders of `new_folder`
_unfinished: set[Path] = set()  # the files that `discard_unfinished` removes


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """Write a file that takes another's place in one step.

    What stood there stays until the new file is complete and on the disk, and for good if anything fails. The new one
    is written in the same folder: across file systems a rename would be a copy into the old file.

    Args:
        file: The file to write.

    Yields:
        A hidden path beside it, to write to.

    Raises:
        WriteError: The disk is full, the folder is gone or cannot be written.
    """
    unfinished = file.with_name(f".{file.stem}.part{file.suffix}")
    _unfinished.add(unfinished)
    try:
        yield unfinished
        _flush(unfinished)
        unfinished.replace(file)
        _flush(file.parent)
    except OSError as error:
        raise WriteError(
            f"A file cannot be written ({error.strerror or error}). Expected a folder that can be written, on a disk "
            f"with room. Received: {file}"
        ) from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        _unfinished.discard(unfinished)


@contextmanager
def atomic_write_text(file: Path, errors: str = "surrogateescape") -> Iterator[TextIO]:
    """Write a text in UTF-8 that takes a file's place in one step, see `atomic_write`.

    Args:
        file: The file to write.
        errors: Treatment of a file's name that is not Unicode, as in `open`; by default its own bytes are written.

    Yields:
        The open stream; lines end as they are written.
    """
    with atomic_write(file) as unfinished, unfinished.open("w", newline="", encoding="utf-8", errors=errors) as stream:
        yield stream


@contextmanager
def atomic_directory(folder: Path) -> Iterator[Path]:
    """Make a folder that appears whole or not at all.

    Several processes may make it at once, and the first to finish wins.

    Args:
        folder: The folder to make; the folders above it are made too.

    Yields:
        A hidden folder beside it, to fill.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".unfinished-"))
    try:
        yield unfinished
        unfinished.chmod(0o755)  # a temporary folder is its owner's alone
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def save_tensors(contents: Any, file: Path) -> None:  # noqa: ANN401
    """Write what `torch.save` takes, in one step.

    Args:
        contents: Plain values and tensors.
        file: The file to write.

    Raises:
        WriteError: As `atomic_write`.
    """
    import torch

    with atomic_write(file) as unfinished:
        try:
            with unfinished.open("wb") as stream:
                torch.save(contents, stream)
        except RuntimeError as error:  # PyTorch's writer, on its way out, hides the reason
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def load_tensors(file: Path) -> Any:  # noqa: ANN401
    """Read what `torch.save` wrote, without running any code that the file may hold.

    Args:
        file: Of any version of PyTorch; one of 1.6 or later is mapped into memory, not read.

    Returns:
        Plain values and tensors, on the CPU.

    Raises:
        pickle.UnpicklingError: The file holds code.
        RuntimeError: The file is damaged or of another kind; EOFError, KeyError, ValueError, OSError too.
    """
    import torch

    return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))


def hash_file(file: Path) -> str:
    """Return the SHA-256 of a file's content, as 64 hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def try_lock(file: Path) -> FileLock | None:
    """Lock a file for this process alone; None where another one holds it."""
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def is_first_process() -> bool:
    """Tell if this is the process of a distributed run that writes; of Lightning's, torchrun's and SLURM's numbers."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def new_folder(pattern: str) -> str:
    """Make a folder that nobody else has, numbered if the name is taken.

    Args:
        pattern: The folder's path, in which `strftime`'s codes stand for the time.

    Returns:
        Its path. Where none can be made it does not exist, and the first to write into it will say why.
    """
    name = datetime.now().strftime(pattern)
    if not is_first_process():  # it has made the run's folder
        _made.append(Path(name))
        return name
    for path in (Path(name), *(Path(f"{name}-{number}") for number in range(2, 1000))):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
        except FileExistsError:
            continue
        except OSError:
            pass
        else:
            _made.append(path)
        return str(path)
    return name


def remove_empty_folders() -> None:
    """Remove the folders of `new_folder` that nothing was written into."""
    for path in _made:
        with suppress(OSError):  # it is not empty, or gone
            path.rmdir()
    _made.clear()


def refuse_results(folder: Path, names: tuple[str, ...], key: str, advice: str = "") -> None:
    """Refuse a folder that holds another run's results.

    Args:
        folder: The folder that the user named.
        names: Files that only such results have.
        key: The option that named it, for the message.
        advice: A sentence to add to the message.

    Raises:
        UserError: One of the files is there.
    """
    found = [name for name in names if (folder / name).exists()]
    if found:
        raise UserError(
            f"This folder holds the results of another run ({', '.join(found)}), which would be lost. Expected a new "
            f"folder. Leave {key} out, or name another.{advice} Received: {folder}"
        )


def discard_unfinished() -> None:
    """Remove files that are only half written, before the process ends."""
    for path in list(_unfinished):
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk; some systems cannot do that for a folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)
