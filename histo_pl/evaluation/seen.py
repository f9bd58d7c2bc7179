"""Tested tiles that had a part in the checkpoint's training: by their own file, or by their patient."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histo_pl.data import HistologyDataModule
from histo_pl.data.hashing import CaseHashes
from histo_pl.errors import UserError
from histo_pl.evaluation.predictions import Predictions
from histo_pl.models.checkpoint import TrainedModel

KEEP, SKIP = "keep", "skip"


@dataclass(frozen=True)
class SeenTiles:
    """The part that each tested tile had in a training.

    Attributes:
        by_file: The split, train or val, that the very file was in, of shape (N,); empty: in none.
        by_case: The split that another tile of its case was in, of shape (N,); empty: in none.
        files_known: False if the checkpoint does not say which files trained it.
        cases_known: False if the checkpoint, or the tested folder, does not say which cases there are.
    """

    by_file: NDArray[np.str_]
    by_case: NDArray[np.str_]
    files_known: bool
    cases_known: bool

    @property
    def left(self) -> NDArray[np.bool_]:
        """The tiles whose own file had no part, of shape (N,); all of them if each had one."""
        return self.by_file == "" if (self.by_file == "").any() else np.ones(len(self.by_file), bool)

    def unseen(self, cases: str) -> NDArray[np.bool_]:
        """Choose the tiles that the figures are on.

        Args:
            cases: `keep` tiles of cases that had a part, or `skip` them.

        Returns:
            True for those tiles, of shape (N,).

        Raises:
            UserError: No tile is left.
        """
        if cases == KEEP:
            return self.left
        if not self.cases_known:
            raise UserError(
                "Patients of the training cannot be recognised: the checkpoint or the folder does not name them. "
                "Expected data.group_regex, data.cases_file or a case column as in the training, or seen_cases=keep. "
                "Received: seen_cases=skip"
            )
        chosen = (self.by_file == "") & (self.by_case == "")
        if not chosen.any():
            raise UserError(
                "Every tile is of a case that had a part in the checkpoint's training. Expected tiles of other "
                "patients, or seen_cases=keep. Received: seen_cases=skip"
            )
        return chosen

    def summary(self, tested: Predictions, cases: str) -> dict[str, Any]:
        """Describe them in plain values.

        Args:
            tested: The N tiles.
            cases: `keep` or `skip`.

        Returns:
            note, train and val (numbers of files), test (the results on these files alone, or None), and
            case_note, cases and tiles_of_cases.
        """
        files, new = Counter(self.by_file.tolist()), self.by_file == ""
        of_cases = new & (self.by_case != "")
        known = files["train"] + files["val"]
        return {
            "note": self._file_note(files),
            "train": files["train"],
            "val": files["val"],
            "test": tested.take(~new).summary() if known else None,
            "case_note": self._case_note(tested, of_cases, cases),
            "cases": len(np.unique(tested.case[of_cases])),
            "tiles_of_cases": int(of_cases.sum()),
        }

    def _file_note(self, counts: Mapping[str, int]) -> str:
        known, total = counts["train"] + counts["val"], len(self.by_file)
        if not self.files_known:
            return (
                "The checkpoint does not say which tiles trained it: if these are among them, the figures are "
                "optimistically biased."
            )
        if not known:
            return (
                f"None of the {total} files is one that trained or validated the checkpoint. (Re-saved copies cannot "
                f"be recognised.)"
            )
        consequence = "they are left out of the figures"
        if known == total:
            consequence = "all figures are on these, and optimistically biased"
        return (
            f"{known} of the {total} tiles had a part in the checkpoint's training ({counts['train']} trained it, "
            f"{counts['val']} validated it): {consequence}."
        )

    def _case_note(self, tested: Predictions, seen: NDArray[np.bool_], choice: str) -> str:
        if not self.cases_known:
            return "Patients of the training cannot be recognised: the checkpoint or the folder does not name them."
        all_cases, cases = np.unique(tested.case), len(np.unique(tested.case[self.by_case != ""]))
        if not cases:
            return (
                f"None of the {len(all_cases)} cases here, such as {all_cases[0]!s}, had a part in the checkpoint's "
                f"training, if they were named alike there."
            )
        if not seen.any():
            return f"Of the {len(all_cases)} cases here {cases} had a part in the training, by these very files alone."
        consequence = "they are left out (seen_cases=skip)"
        if choice == KEEP:
            consequence = "the figures are optimistically biased (seen_cases=skip leaves them out)"
        return (
            f"{int(seen.sum())} tiles whose files are new are of {len(np.unique(tested.case[seen]))} cases that had a "
            f"part in the checkpoint's training: {consequence}."
        )


def find_seen(model: TrainedModel, hashes: Mapping[str, str], tested: Predictions) -> SeenTiles:
    """Find the tiles that had a part in a training.

    Args:
        model: The checkpoint.
        hashes: The `content_hash` of each tile, by its path.
        tested: The tested tiles.

    Returns:
        The part of each.
    """
    by_file = [model.training_hashes.get(hashes[path], "") for path in tested.path.tolist()]
    cases_known = bool(model.training_cases) and tested.has_cases
    split_of = _splits_of(set(tested.case.tolist()), model) if cases_known else {}
    by_case = [split_of.get(case, "") for case in tested.case.tolist()]
    return SeenTiles(np.array(by_file, np.str_), np.array(by_case, np.str_), bool(model.training_hashes), cases_known)


def seen_paths(model: TrainedModel, data: HistologyDataModule) -> set[str]:
    """Find the tiles whose own file, or whose patient, had a part in a training.

    Args:
        model: The checkpoint.
        data: Set up.

    Returns:
        Their paths.
    """
    cases = _splits_of({tile.case for tile in data.tiles} - {""}, model)
    return {tile.path for tile in data.tiles if tile.case in cases or data.hashes[tile.path] in model.training_hashes}


def _splits_of(cases: set[str], model: TrainedModel) -> dict[str, str]:
    """Return the split, train or val, of those cases that a training knew."""
    return {case: split for known in model.training_cases for case, split in CaseHashes(**known).find(cases).items()}
