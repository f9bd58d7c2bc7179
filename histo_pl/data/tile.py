"""One tile of a data set, and the names of the parts of a split."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from histo_pl.errors import UserError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
NO_COLUMNS: Mapping[str, str] = {}  # one for all tiles: there may be hundreds of thousands


@dataclass(frozen=True, slots=True)
class Tile:
    """One image file of a data set.

    Attributes:
        path: Relative to the data set's root, with forward slashes: the one key of a tile everywhere.
        class_name: Its class: the name of its class folder, or of all folders that mean the same.
        case: The patient it was taken from, empty where that is unknown.
        joined_group: The group that a group file puts it into; empty where none does.
        published_split: The split whose folder it lies in, or that a table names; None where there is none.
        columns: Further properties by name, such as its magnification or the class folder among several.
    """

    path: str
    class_name: str
    case: str = ""
    joined_group: str = ""
    published_split: Split | None = None
    columns: Mapping[str, str] = field(default_factory=lambda: NO_COLUMNS, hash=False)

    @property
    def group(self) -> str:
        """The unit that no split divides: a joined group, else the case, else the tile itself."""
        return self.joined_group or self.case or self.path


def case_of(path: str, group_regex: str | None, key: str = "data.group_regex") -> str:
    r"""Read the case out of a tile's path.

    Args:
        path: Relative to the root, with forward slashes.
        group_regex: Searched in `path`; its first group is the case, or the whole match if it has none.
            None: cases are unknown.
        key: The option's name, for errors.

    Returns:
        The case, empty where cases are unknown.

    Raises:
        UserError: The expression is not valid or does not match.
    """
    if group_regex is None:
        return ""
    try:
        match = re.search(group_regex, path)
    except re.error as error:
        raise UserError(f"{key} is no valid regular expression ({error}). Received: {group_regex}") from error
    case = match and match.group(min(1, match.re.groups))
    if not case:
        raise UserError(
            f"{key} finds no case in a tile's path. Expected one in every path. Received: {group_regex} and {path}"
        )
    return case
