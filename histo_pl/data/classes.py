"""The class folder that means malignant, by its name."""

import re
from collections.abc import Sequence

from histo_pl.errors import UserError

POSITIVE_WORDS = frozenset(
    "malignant malignancy cancer cancerous carcinoma adenocarcinoma tumor tumors tumour tumours "
    "tumoral metastasis metastatic positive".split()
)
NEGATING_WORDS = frozenset("non no not without free negative normal healthy benign".split())

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def find_positive_class(classes: Sequence[str], chosen: str | None = None) -> str:
    """Name the class that means malignant, never by alphabetical order.

    Whole words decide: `breast_malignant` and `TumourTissue` are positive; `non_malignant`, `no_tumour`,
    `cancer-free` and `benign_tumor` are not.

    Args:
        classes: The names of the class folders.
        chosen: The user's choice (`data.positive_class`), which is checked and returned.

    Returns:
        One of `classes`.

    Raises:
        UserError: `chosen` is no class, or the words do not single one class out.
    """
    if chosen is not None:
        if chosen not in classes:
            raise UserError(
                f"data.positive_class names no class folder. Expected one of {_listed(classes)}. Received: {chosen}"
            )
        return chosen
    positive = [name for name in classes if means_malignant(name)]
    if len(positive) != 1:
        raise UserError(
            f"The names of the class folders do not say which one means malignant. "
            f"Say it with data.positive_class=NAME. Received: {_listed(classes)}"
        )
    return positive[0]


def means_malignant(name: str) -> bool:
    """Return whether the words of a class folder's name say malignant, and none of them denies it."""
    words = {word.lower() for word in _WORD.findall(name)}
    return bool(words & POSITIVE_WORDS) and not words & NEGATING_WORDS


def _listed(classes: Sequence[str]) -> str:
    return ", ".join(classes) or "none"
