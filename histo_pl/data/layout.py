"""Folder layouts: a root folder or a zip file of it to a list of tiles.

This is the only code that knows layouts; training, evaluation and audit all read through it. A root holds class
folders (`root/<class>/...`) or published splits with the same class folders in each (`root/train/<class>/...`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torchvision.datasets import ImageFolder

from histo_pl.data.archive import unpack
from histo_pl.data.tile import Split, Tile, case_of
from histo_pl.errors import UserError
from histo_pl.images import find_files, is_image

SPLIT_FOLDERS: Mapping[str, Split] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
CLASSES = 2


class ClassFolders(ImageFolder):
    """torchvision's `ImageFolder` over one root of class folders, listed as everywhere in histo_pl.

    Hidden folders and files are left out, and a link that leads in a circle is not followed, which torchvision's own
    listing does. A class folder may be empty.

    Args:
        root: Folder with one folder a class.
    """

    @staticmethod
    def make_dataset(
        directory: str | Path,
        class_to_idx: dict[str, int],
        extensions: tuple[str, ...] | None = None,
        is_valid_file: Callable[[str], bool] | None = None,
        allow_empty: bool = False,
    ) -> list[tuple[str, int]]:
        """List the images of each class folder.

        Args:
            directory: The root.
            class_to_idx: The index of each class folder, from 0.
            extensions: Not used: `is_image` decides.
            is_valid_file: Not used.
            allow_empty: Not used.

        Returns:
            N pairs of an image file and the index of its class.
        """
        return [
            (str(file), index)
            for name, index in class_to_idx.items()
            for file in find_files(Path(directory, name))
            if is_image(file)
        ]

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """List the visible folders of a root.

        Args:
            directory: The root.

        Returns:
            Their names in alphabetical order, and the index of each, from 0.
        """
        names = _visible_folders(Path(directory))
        return names, {name: index for index, name in enumerate(names)}


@dataclass(frozen=True)
class Layout:
    """The tiles of a root folder.

    Attributes:
        root: The folder that the tiles' paths are relative to.
        tiles: The images in class folders.
        loose: The images in no class folder; their `class_name` is empty.
        class_folders: The names of the class folders, by the folder that holds them: a published split's, or `.`.
        folders: The names of all visible folders directly in the root.
    """

    root: Path
    tiles: tuple[Tile, ...]
    loose: tuple[Tile, ...]
    class_folders: Mapping[str, tuple[str, ...]]
    folders: tuple[str, ...]

    @property
    def is_published(self) -> bool:
        """True if the folder comes with splits of its own."""
        return "." not in self.class_folders

    def other_files(self) -> list[str]:
        """List the visible files that are no tile: no images, or in no class folder.

        Returns:
            Paths relative to the root, in order.
        """
        known = {tile.path for tile in self.tiles}
        paths = (file.relative_to(self.root).as_posix() for file in find_files(self.root))
        return [path for path in paths if path not in known]


def read_layout(root: Path, group_regex: str | None = None, regex_key: str = "data.group_regex") -> Layout:
    """Find the tiles of a folder, or of a zip file, which is unpacked beside itself once.

    A folder that is alone in the root, as in many zip files, is stepped into.

    Args:
        root: The folder or zip file.
        group_regex: Finds the case in a tile's path, see `tile.case_of`; None: cases are unknown.
        regex_key: The option that names the expression, for errors.

    Returns:
        The layout, with any number of classes; `check_binary` is for training.

    Raises:
        UserError: The folder does not exist, the zip file cannot be unpacked, or a path names no case.
    """
    if root.is_file() and root.suffix.lower() == ".zip":
        root = unpack(root)
    if not root.is_dir():
        raise UserError(
            f"The folder of tiles does not exist. Expected a folder with two class folders, or with train and test, "
            f"or a zip file of one. Received: {root}"
        )
    root = _inner_folder(root)
    folders = _visible_folders(root)
    published = [name for name in folders if name.lower() in SPLIT_FOLDERS]
    tiles, class_folders = [], {}
    for name in published or ["."]:
        listed = ClassFolders(str(root / name))
        split = SPLIT_FOLDERS.get(name.lower())
        class_folders[name] = tuple(listed.classes)
        for file, index in listed.samples:
            path = Path(file).relative_to(root).as_posix()
            tiles.append(Tile(path, listed.classes[index], case_of(path, group_regex, regex_key), "", split))
    known = {tile.path for tile in tiles}
    paths = (file.relative_to(root).as_posix() for file in find_files(root) if is_image(file))
    loose = [Tile(path, "", published_split=_split_of(path, published)) for path in paths if path not in known]
    return Layout(root, tuple(tiles), tuple(loose), class_folders, tuple(folders))


def check_binary(layout: Layout) -> None:
    """Refuse a layout that is not two classes with tiles, the same two in every published split.

    Args:
        layout: As `read_layout` returns it.

    Raises:
        UserError: Says what was expected, and what is there.
    """
    if layout.is_published:
        _check_published(layout)
    for folder, names in layout.class_folders.items():
        parent = layout.root if folder == "." else layout.root / folder
        if len(names) != CLASSES:
            raise UserError(
                f"A folder of tiles must hold two class folders, such as benign and malignant. "
                f"Received: {parent} with {len(names)} ({', '.join(names[:5]) or 'none'})"
            )
        prefix = "" if folder == "." else f"{folder}/"
        empty = [n for n in names if not any(tile.path.startswith(f"{prefix}{n}/") for tile in layout.tiles)]
        if empty:
            raise UserError(f"A class folder has no images. Expected some in each. Received: {parent / empty[0]}")


def _check_published(layout: Layout) -> None:
    splits = [SPLIT_FOLDERS[name.lower()] for name in layout.class_folders]
    others = set(layout.folders) - layout.class_folders.keys()
    if others or len(set(splits)) < len(splits) or not {"train", "test"} <= set(splits):
        raise UserError(
            f"A folder with published splits must hold train and test, may hold val (or valid, or validation), and no "
            f"others: without val, validation tiles are drawn from train. To split a single folder anew use "
            f"data.root={layout.root / 'train'}. Received: {layout.root} with {', '.join(layout.folders)}"
        )
    if len(set(layout.class_folders.values())) > 1:
        listed = "; ".join(f"{folder}: {', '.join(names)}" for folder, names in layout.class_folders.items())
        raise UserError(f"All splits must hold the same two class folders. Received: {layout.root} with {listed}")


def _inner_folder(root: Path) -> Path:
    """Step into the one folder that a zip file was made of, as long as there is nothing beside it."""
    while True:
        visible = [entry for entry in root.iterdir() if not entry.name.startswith((".", "__"))]
        if len(visible) != 1 or not _holds_folders(visible[0]):
            return root
        root = visible[0]


def _holds_folders(entry: Path) -> bool:
    if not entry.is_dir() or entry.name.lower() in SPLIT_FOLDERS:
        return False
    return any(child.is_dir() for child in entry.iterdir())


def _visible_folders(root: Path) -> list[str]:
    return sorted(f.name for f in root.iterdir() if f.is_dir() and not f.name.startswith((".", "__")))


def _split_of(path: str, published: list[str]) -> Split | None:
    first = path.split("/", maxsplit=1)[0]
    return SPLIT_FOLDERS[first.lower()] if first in published else None
