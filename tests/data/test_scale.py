from collections.abc import Callable
from pathlib import Path

import pytest

from histo_pl.data import HistologyDataModule
from histo_pl.errors import UserError
from histo_pl.models.checkpoint import load_checkpoint
from histo_pl.models.scale import describe_other_scale
from tests.conftest import draw_image


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """Tiles of two magnifications and several sizes."""
    for name in ("benign", "malignant"):
        for number in range(10):
            size = (40, 30) if number < 7 else (80, 60)
            draw_image(tmp_path / "tiles" / name / f"t{number}_mpp{0.25 if number < 3 else 0.5}.png", number, size)
    return tmp_path / "tiles"


def summary_of(root: Path, **options: object) -> dict:
    data = HistologyDataModule(root, num_workers=0, **options)  # pyright: ignore[reportArgumentType]
    data.setup()
    return data.summary()


def test_the_summary_keeps_scale_and_size(tiles: Path) -> None:
    assert summary_of(tiles)["mpp"] is None
    assert summary_of(tiles)["tile_size"] == [40, 30]
    assert summary_of(tiles, mpp=0.4)["mpp"] == 0.4


def test_a_column_gives_each_tiles_scale_and_the_median_counts(tiles: Path) -> None:
    assert summary_of(tiles, mpp="scale", columns={"scale": r"mpp([\d.]+)\.png"})["mpp"] == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mpp": 0}, "data.mpp is out of range"),
        ({"mpp": "scale"}, "no such column"),
        ({"mpp": "scale", "columns": {"scale": "(tile)"}}, "does not hold micrometres per pixel.*nothing"),
        ({"mpp": "scale", "columns": {"scale": "(benign|malignant)"}}, "does not hold micrometres per pixel.*benign"),
        ({"mpp": 0.5, "columns": {"magnification": r"mpp([\d.]+)\.png"}}, "several magnifications, and one data.mpp"),
    ],
)
def test_a_wrong_scale_is_one_line(tiles: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        summary_of(tiles, **options)


def test_sizes_are_remembered(tiles: Path, tmp_path: Path) -> None:
    store = tmp_path / "inspections.sqlite"
    first = summary_of(tiles, inspections=store)
    assert summary_of(tiles, inspections=store)["tile_size"] == first["tile_size"]


def test_the_checkpoint_keeps_scale_and_size(run_training: Callable[..., dict]) -> None:
    results = run_training("data.mpp=0.5")
    model = load_checkpoint(results["run"]["checkpoint"])
    assert (model.mpp, model.tile_size) == (0.5, (32, 32))
    assert describe_other_scale(model, 0.55) is None
    assert describe_other_scale(model, None) is None
    assert "0.25 micrometres per pixel, those of the training 0.5" in (describe_other_scale(model, 0.25) or "")
