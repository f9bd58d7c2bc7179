"""Folder layouts: the image files below a root to the class, the split and the case that their folders name.

This is the only code that knows layouts; training, evaluation and audit all read through it. Class folders lie in the
root (`CLASS/...`), in published splits (`train/CLASS/...`) or in a folder of each patient (`PATIENT/CLASS/...`).
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torchvision.datasets import ImageFolder

from histo_pl.data.archive import unpack
from histo_pl.data.classes import CLASSES, SHOWN, listed, means_malignant, says_classes
from histo_pl.data.tile import Split
from histo_pl.errors import UserError
from histo_pl.images import is_image, list_files

SPLIT_FOLDERS: Mapping[str, Split] = {  # in small letters
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True, slots=True)
class FoundFile:
    """An image file, and what the folders above it say.

    Attributes:
        path: Relative to the root, with forward slashes.
        folder: Its class folder; empty: it lies in none.
        split: The published split whose folder it lies in; None: in none.
        patient: The folder of the patient above its class folder; empty: there is none.
    """

    path: str
    folder: str = ""
    split: Split | None = None
    patient: str = ""


@dataclass(frozen=True)
class Listing:
    """The files below a root.

    Attributes:
        root: The folder that paths are relative to.
        images: Paths of the image files that are taken, in order.
        others: Paths of the visible files that are no images.
        excluded: Paths of the image files that are left out.
        inner: The folders that were stepped into, such as `a/b/`; empty: none.
    """

    root: Path
    images: tuple[str, ...]
    others: tuple[str, ...]
    excluded: tuple[str, ...]
    inner: str = ""

    @property
    def all_images(self) -> tuple[str, ...]:
        """Paths of all image files, taken or left out."""
        return self.images + self.excluded


def list_root(root: Path, is_taken: Callable[[str], bool] = lambda _: True) -> Listing:
    """List the files below a folder, or of a zip file, which is unpacked beside itself once.

    A folder is stepped into as long as it holds no image and only one folder with images, as many downloads do.

    Args:
        root: The folder or zip file.
        is_taken: Tells of a path, relative to the root that was stepped into, if it is taken.

    Returns:
        The files.

    Raises:
        UserError: The folder does not exist, or the zip file cannot be unpacked.
    """
    if root.is_file() and root.suffix.lower() == ".zip":
        root = unpack(root)
    if not root.is_dir():
        raise UserError(
            f"The folder of tiles does not exist. Expected a folder with two class folders, or with train and test, "
            f"or a zip file of one. Received: {root}"
        )
    start = len(os.path.join(root, ""))  # noqa: PTH118
    files = [path[start:].replace(os.sep, "/") for path in list_files(root)]
    images = [path for path in files if is_image(path)]
    inner = _inner_folder(images)
    taken: dict[bool, list[str]] = {True: [], False: []}
    for path in images:
        within = path.removeprefix(inner)
        taken[is_taken(within)].append(within)
    return Listing(
        root=root / inner,
        images=tuple(taken[True]),
        others=tuple(path.removeprefix(inner) for path in files if path.startswith(inner) and not is_image(path)),
        excluded=tuple(taken[False]),
        inner=inner,
    )


def _inner_folder(images: Sequence[str]) -> str:
    """Find the folders, as `a/b/`, to step into: each the only one with images, which lie in folders below it."""
    inner = ""
    while images:
        first = images[0][len(inner) :].partition("/")[0]
        step = f"{inner}{first}/"
        if not all(path.startswith(step) and "/" in path[len(step) :] for path in images):
            break
        inner = step
    return inner


def read_folders(listing: Listing, chosen_classes: Iterable[str] = ()) -> list[FoundFile]:
    """Read class, split and patient out of the folders' names.

    Args:
        listing: The files.
        chosen_classes: Class folders that the user names, which decide where class folders lie.

    Returns:
        The images in their order.

    Raises:
        UserError: Published splits lie beside other folders, or a folder of a patient lacks class folders.
    """
    images = [path.split("/") for path in listing.images]
    splits = _published_splits(listing, images)
    depth = 1 if splits else 0
    level = depth + _class_level([tuple(parts[depth:-1]) for parts in images], set(chosen_classes), listing)
    found = []
    for path, parts in zip(listing.images, images, strict=True):
        split = SPLIT_FOLDERS[parts[0].lower()] if splits and len(parts) > 1 else None
        folder = parts[level] if len(parts) > level + 1 else ""
        patient = parts[depth] if level == depth + 1 and folder else ""
        found.append(FoundFile(path, folder, split, patient))
    return found


def _published_splits(listing: Listing, images: Sequence[Sequence[str]]) -> bool:
    """Tell if all folders are those of published splits; refuse a mixture."""
    folders = sorted({parts[0] for parts in images if len(parts) > 1})
    published = [name for name in folders if name.lower() in SPLIT_FOLDERS]
    if not published:
        return False
    splits = [SPLIT_FOLDERS[name.lower()] for name in published]
    if len(published) < len(folders) or len(set(splits)) < len(splits):
        raise UserError(
            f"A folder with published splits must hold train, val (or valid, validation) and test, each once, and no "
            f"other folder with images. Leave others out by data.exclude='NAME/**', or split one folder anew by "
            f"data.root={listing.root / published[0]}. Received: {listing.root} with {listed(folders)}"
        )
    return True


def _class_level(folders: Iterable[tuple[str, ...]], chosen: set[str], listing: Listing) -> int:
    """Find the level of the class folders: 0: the first; 1: the second, below a folder of each patient; or deeper."""
    chains = {names for names in folders if names}
    levels = [
        sorted({names[level] for names in chains if len(names) > level})
        for level in range(max(map(len, chains), default=0))
    ]
    first, second = [*levels, [], []][:2]
    for level, names in enumerate(levels):
        if chosen and chosen <= set(names):
            if level == 1:
                _check_patients(chains, first, second, listing)
            return level
    if chosen or not second or any(map(means_malignant, first)) or says_classes(first):
        return 0
    if says_classes(second) and all(len(names) > 1 for names in chains):
        return 1
    if CLASSES <= len(second) <= SHOWN:
        raise UserError(
            f"The folders do not say where the classes are. If {listed(second)} are the classes, below a folder of "
            f"each patient, say which means malignant: data.positive_class={second[-1]}. If {listed(first)} are: "
            f"data.positive_class={first[-1]}. Received: {listing.root}"
        )
    return 0


def _check_patients(
    chains: Iterable[tuple[str, ...]], first: Sequence[str], second: Sequence[str], listing: Listing
) -> None:
    """Refuse a folder beside those of the patients that holds other folders, such as a second copy of all."""
    below: defaultdict[str, set[str]] = defaultdict(set)
    for names in chains:
        below[names[0]].update(names[1:2])
    usual = {name for name in second if sum(name in names for names in below.values()) > 1} or set(second)
    strange = [name for name in first if not below.get(name, set()) & usual]
    strange += [name for name in first if below.get(name, set()) - usual and name not in strange]
    if strange:
        raise UserError(
            f"A folder lies among those of the patients and does not hold the same class folders "
            f"({listed(sorted(usual))}). Leave it out by data.exclude='{strange[0]}/**'. "
            f"Received: {listing.root} with {listed(strange)}"
        )


class ClassFolders(ImageFolder):
    """torchvision's `ImageFolder` over files that were listed once.

    Its own listing takes hidden files and follows a link that leads in a circle.

    Args:
        root: The folder that paths are relative to.
        files: The files, each in a class folder.
    """

    def __init__(self, root: Path, files: Sequence[FoundFile]) -> None:
        self.files = files
        super().__init__(str(root))

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """List the class folders.

        Args:
            directory: Not used: the files are listed.

        Returns:
            Their names in alphabetical order, and the index of each, from 0.
        """
        names = sorted({file.folder for file in self.files})
        return names, {name: index for index, name in enumerate(names)}

    def make_dataset(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, directory: str | Path, class_to_idx: dict[str, int], *_: object, **__: object
    ) -> list[tuple[str, int]]:
        """List the images.

        Args:
            directory: The root.
            class_to_idx: The index of each class folder, from 0.
            *_: Not used: the files are listed.
            **__: Not used.

        Returns:
            N pairs of an image file and the index of its class.
        """
        return [(f"{directory}/{file.path}", class_to_idx[file.folder]) for file in self.files]
