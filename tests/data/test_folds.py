"""Cross-validation."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from histo_pl.data import HistologyDataModule
from histo_pl.data.splits import fold_groups, split_tiles
from histo_pl.data.tile import Tile
from histo_pl.errors import UserError

MakeFolder = Callable[..., Path]
TILES = [
    Tile(f"{name}/{case}_{number}.png", name, f"{name}{case}")
    for name, cases in (("benign", 10), ("malignant", 34))
    for case in range(cases)
    for number in range(3 + 7 * case % 11)
]


@pytest.mark.parametrize("seed", [0, 1])
def test_every_case_is_tested_in_exactly_one_fold_and_classes_are_even(seed: int) -> None:
    folds = [fold_groups(TILES, 5, fold, seed) for fold in range(5)]
    assert Counter(case for fold in folds for case in fold) == dict.fromkeys({tile.case for tile in TILES}, 1)
    for class_name in ("benign", "malignant"):
        counts = [sum(t.class_name == class_name and t.case in fold for t in TILES) for fold in folds]
        assert max(counts) < 1.5 * min(counts)


def test_the_seed_deals_equally_large_cases_anew() -> None:
    tiles = [Tile(f"{n % 2}/{n}.png", "ab"[n % 2], f"case{n}") for n in range(20)]
    assert fold_groups(tiles, 5, 0, seed=0) == fold_groups(tiles, 5, 0, seed=0) != fold_groups(tiles, 5, 0, seed=1)


def test_a_fold_tests_and_the_rest_trains_and_validates() -> None:
    parts = split_tiles(TILES, val_fraction=0.2, test_fraction=0.2, seed=0, folds=5, fold=3)
    assert {t.case for t in TILES if parts[t.path] == "test"} == fold_groups(TILES, 5, 3, 0)
    assert set(parts.values()) == {"train", "val", "test"}


@pytest.mark.parametrize(("folds", "fold"), [(1, 0), (5, 5), (5, -1), (11, 0)])
def test_folds_that_cannot_be_are_refused(folds: int, fold: int) -> None:
    with pytest.raises(UserError, match="folds"):
        fold_groups(TILES, folds, fold, 0)


def test_folds_of_a_folder_with_its_own_test_set_are_refused(make_folder: MakeFolder) -> None:
    root = make_folder({"train/benign": 4, "train/malignant": 4, "test/benign": 2, "test/malignant": 2})
    with pytest.raises(UserError, match=r"data\.folds needs one folder"):
        HistologyDataModule(root, folds=2).setup()


def test_a_fold_without_folds_is_refused(make_folder: MakeFolder) -> None:
    with pytest.raises(UserError, match="means nothing without data"):
        HistologyDataModule(make_folder({"benign": 5, "malignant": 5}), fold=2).setup()
