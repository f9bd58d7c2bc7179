"""The two classes of a data set: the folders or labels that mean malignant, and those that mean benign."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from histo_pl.data.selection import as_list
from histo_pl.errors import UserError

POSITIVE_WORDS = frozenset(
    "malignant malignancy cancer cancerous carcinoma adenocarcinoma tumor tumors tumour tumours "
    "tumoral metastasis metastatic positive".split()
)
NEGATING_WORDS = frozenset("non no not without free negative normal healthy benign".split())

CLASSES = 2
SHOWN = 10  # names in a message

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


@dataclass(frozen=True)
class ClassChoice:
    """The user's choice of classes: keys of `conf/data/folder.yaml`.

    Attributes:
        positive_class: The class folders or labels that mean malignant, one or several; None: found by their names.
        negative_class: Those that mean benign; None: all others.
        ignore_class: Those whose tiles are left out.
    """

    positive_class: object = None
    negative_class: object = None
    ignore_class: object = None

    def resolve(self, names: Sequence[str]) -> "Classes":
        """Give each class folder or label of a data set its class.

        Args:
            names: The names that have images.

        Returns:
            The classes.

        Raises:
            UserError: A chosen name does not exist or is chosen twice, a name is in no list, or the names do not say
                which one means malignant.
        """
        chosen = {key: as_list(getattr(self, key)) for key in ("positive_class", "negative_class", "ignore_class")}
        self._check(chosen, names)
        left = [name for name in names if name not in chosen["ignore_class"]]
        if len(left) < CLASSES:
            raise UserError(
                f"There must be two classes with images, such as benign and malignant. Received: {listed(left)}"
            )
        positive = chosen["positive_class"] or [find_positive_class(left)]
        negative = chosen["negative_class"] or [name for name in left if name not in positive]
        others = [name for name in left if name not in (*positive, *negative)]
        if others or not negative:
            received = listed(others) if others else "no benign one"
            raise UserError(
                f"Each class folder must mean malignant, benign, or nothing. Expected the others in "
                f"data.negative_class=[...] or data.ignore_class=[...]. Received: {received}"
            )
        return Classes(
            dict.fromkeys(positive, True) | dict.fromkeys(negative, False), ", ".join(positive), ", ".join(negative)
        )

    @staticmethod
    def _check(chosen: Mapping[str, Sequence[str]], names: Sequence[str]) -> None:
        for key, several in chosen.items():
            unknown = [name for name in several if name not in names]
            if unknown:
                raise UserError(
                    f"data.{key} names no class folder with images. Expected some of {listed(names)}. "
                    f"Received: {listed(unknown)}"
                )
        all_names = [name for several in chosen.values() for name in several]
        twice = sorted({name for name in all_names if all_names.count(name) > 1})
        if twice:
            raise UserError(
                f"A class folder is named twice in data.positive_class, data.negative_class and data.ignore_class. "
                f"Expected each once. Received: {listed(twice)}"
            )


@dataclass(frozen=True)
class Classes:
    """The two classes of a data set.

    Attributes:
        is_positive: True for each class folder or label that means malignant, False for those that mean benign; those
            that are left out are absent.
        positive: Name of the malignant class: that of its folder, or of its folders.
        negative: The same of the benign class.
    """

    is_positive: Mapping[str, bool]
    positive: str
    negative: str

    def name_of(self, folder: str) -> str:
        """Return the name of the class that a folder or label belongs to."""
        return self.positive if self.is_positive[folder] else self.negative


def find_positive_class(names: Sequence[str]) -> str:
    """Find the name that means malignant, never by alphabetical order.

    Whole words decide: `breast_malignant` and `TumourTissue` are positive; `non_malignant`, `no_tumour`,
    `cancer-free` and `benign_tumor` are not.

    Args:
        names: Of the class folders.

    Returns:
        One of `names`.

    Raises:
        UserError: There are more than two, or the words do not single one out.
    """
    positive = [name for name in names if means_malignant(name)]
    if len(names) > CLASSES:
        raise UserError(
            f"There are {len(names)} class folders. Say which mean malignant, with data.positive_class=NAME or "
            f"data.positive_class=[NAME,NAME]; all others mean benign, unless data.negative_class or data.ignore_class "
            f"names them. Received: {listed(names)}"
        )
    if len(positive) != 1:
        raise UserError(
            f"The names of the class folders do not say which one means malignant. "
            f"Say it with data.positive_class=NAME. Received: {listed(names)}"
        )
    return positive[0]


def says_classes(names: Sequence[str]) -> bool:
    """Return whether two names are those of classes: 0 and 1, or two of which one means malignant."""
    if sorted(names) == ["0", "1"]:
        return True
    return len(names) == CLASSES and sum(map(means_malignant, names)) == 1


def means_malignant(name: str) -> bool:
    """Return whether the words of a class folder's name say malignant, and none of them denies it."""
    words = {word.lower() for word in _WORD.findall(name)}
    return bool(words & POSITIVE_WORDS) and not words & NEGATING_WORDS


def listed(names: Sequence[str]) -> str:
    """Write names for a message: the first ten, and the number of the others; `none` without any."""
    shown = ", ".join(names[:SHOWN])
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown or "none"
