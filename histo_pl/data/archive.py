"""A zipped data set, unpacked once."""

import shutil
import zipfile
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from histo_pl.errors import UserError
from histo_pl.storage import atomic_directory

UNPACKED_FROM = ".unpacked_from"  # in the unpacked folder: the archive it came from
JUNK = "__MACOSX"


def unpack(archive: Path) -> Path:
    """Unpack a zip file into the folder of its name beside it, unless that was done before.

    Nothing is written outside of that folder, and it appears only when it is complete.

    Args:
        archive: Such as `Breast_Cancer.zip`.

    Returns:
        The folder, such as `Breast_Cancer`.

    Raises:
        UserError: The file is no zip file, is damaged, would write outside its folder, or does not fit on the disk;
            or the folder exists and came from elsewhere.
    """
    folder = archive.with_suffix("")
    try:
        with zipfile.ZipFile(archive) as contents:
            has_backslashes = _with_slashes(contents.infolist())
            members = [member for member in contents.infolist() if _is_wanted(member, archive)]
            origin = f"{archive.name} {sum(m.file_size for m in members)} {len(members)}"
            origin += f"{' with backslashes' if has_backslashes else ''}\n"  # which were once unpacked flat
            if folder.exists():
                _check_origin(folder, origin, archive)
                return folder
            _check_space(members, archive)
            _extract(contents, members, folder, origin)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise UserError(f"This zip file cannot be unpacked ({error}). Fetch it again. Received: {archive}") from error
    except OSError as error:
        raise UserError(
            f"The zip file cannot be unpacked here ({error}). Unpack it elsewhere and give that folder as data.root. "
            f"Received: {archive}"
        ) from error
    return folder


def _with_slashes(members: list[zipfile.ZipInfo]) -> bool:
    """Repair names that some Windows tools write against the format (APPNOTE 4.4.17.1); tell if there were any."""
    wrong = [member for member in members if "\\" in member.filename]
    for member in wrong:
        member.filename = member.filename.replace("\\", "/")
    return bool(wrong)


def _is_wanted(member: zipfile.ZipInfo, archive: Path) -> bool:
    path = PurePosixPath(member.filename)
    if path.is_absolute() or ".." in path.parts or (path.parts and ":" in path.parts[0]):
        raise UserError(
            f"The zip file would write outside of its folder. Do not trust it. Received: {archive} with "
            f"{member.filename}"
        )
    return not member.is_dir() and JUNK not in path.parts


def _check_origin(folder: Path, origin: str, archive: Path) -> None:
    note = folder / UNPACKED_FROM
    if not (note.is_file() and note.read_text(encoding="utf-8", errors="surrogateescape") == origin):
        raise UserError(
            f"The folder to unpack into exists and is not from this zip file. If it holds the tiles, use "
            f"data.root={folder}; else move it away. Received: {archive}"
        )


def _check_space(members: list[zipfile.ZipInfo], archive: Path) -> None:
    size, free = sum(member.file_size for member in members), shutil.disk_usage(archive.parent).free
    if size > free:
        raise UserError(
            f"The zip file does not fit on this disk. Expected {size / 1e9:.1f} GB free. "
            f"Received: {free / 1e9:.1f} GB for {archive}"
        )


def _extract(contents: zipfile.ZipFile, members: list[zipfile.ZipInfo], folder: Path, origin: str) -> None:
    with atomic_directory(folder) as unfinished:
        for member in tqdm(members, desc=f"Unpacking {folder.name}", unit="file"):
            contents.extract(member, unfinished)
        (unfinished / UNPACKED_FROM).write_text(origin, encoding="utf-8", errors="surrogateescape")
