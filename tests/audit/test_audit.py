"""The audit, on tiles of drawn tissue and their altered copies."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from histo_pl.__main__ import main
from histo_pl.audit.run import audit_tiles
from histo_pl.data import HistologyDataModule
from histo_pl.errors import UserError
from tests.conftest import draw_image

pytest.importorskip("cv2")


def alter(image: Image.Image, number: int) -> Image.Image:
    """Augmentor's and Keras's kinds of copies: turned and flipped, zoomed, sheared and brightened."""
    width, height = image.size
    if number == 0:
        return ImageOps.mirror(image.rotate(90))
    if number == 1:
        return image.resize((width * 5 // 4, height * 6 // 5)).crop((width // 8, 9, width + width // 8, height + 9))
    sheared = image.transform(image.size, Image.Transform.AFFINE, (1, 0.1, -10, 0, 1, 0), Image.Resampling.BILINEAR)
    return ImageEnhance.Brightness(sheared.rotate(17, Image.Resampling.BILINEAR)).enhance(1.15)


@pytest.fixture
def tiles(demo_root: Path, tmp_path: Path) -> Path:
    """Eight tiles; three have an altered copy, one of them in the other class, and one lies twice."""
    from histo_pl.data.synthetic.demo import draw_demo

    root = tmp_path / "tiles"
    draw_demo(root, cases=8, tiles_per_case=1, size=160, seed=3)
    sources = sorted(root.rglob("*.png"))
    for number, source in enumerate(sources[:3]):
        place = root / "malignant" if number == 2 else source.parent
        alter(Image.open(source), number).save(place / f"copy{number}_{source.stem}.jpg", quality=85)
    (sources[4].parent / f"twice_{sources[4].name}").write_bytes(sources[4].read_bytes())
    return root


def run(folder: Path, *folders: Path, **options: object) -> tuple[str, dict[str, object], list[dict[str, str]]]:
    text = audit_tiles(folders, out=folder, **options)  # pyright: ignore[reportArgumentType]
    with (folder / "groups.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return text, json.loads((folder / "audit.json").read_text()), rows


def test_copies_of_every_kind_are_found_and_nothing_else(tiles: Path, tmp_path: Path) -> None:
    _, found, rows = run(tmp_path / "out", tiles, group_regex=r"case\d+")
    assert found["copies"] == {"groups": 4, "tiles": 8, "surplus": 4}
    assert found["exact_copies"] == {"groups": 1, "tiles": 2, "surplus": 1}
    for number in {row["group"] for row in rows}:
        (one, other) = (row for row in rows if row["group"] == number)
        assert one["case"] == other["case"]
    (conflict,) = found["conflicting_labels"]  # pyright: ignore[reportGeneralTypeIssues]
    assert {Path(path).parent.name for path in conflict} == {"benign", "malignant"}


def test_the_next_split_keeps_the_groups_together(tiles: Path, tmp_path: Path) -> None:
    _, _, rows = run(tmp_path / "out", tiles)
    for seed in range(5):
        data = HistologyDataModule(tiles, groups_file=tmp_path / "out" / "groups.csv", seed=seed, num_workers=0)
        data.setup()
        for number in {row["group"] for row in rows}:
            assert len({data.split_of[row["path"]] for row in rows if row["group"] == number}) == 1


def test_copies_and_cases_on_both_sides_of_a_split_are_told(tiles: Path, tmp_path: Path) -> None:
    paths = sorted(path.relative_to(tiles).as_posix() for path in tiles.rglob("*.*"))
    parts = ("train" if "copy" not in path and "twice" not in path else "test" for path in paths)
    split = tmp_path / "split.csv"
    split.write_text("path,split\n" + "".join(f"{path},{part}\n" for path, part in zip(paths, parts, strict=True)))
    text, found, _ = run(tmp_path / "out", tiles, group_regex=r"case\d+", split_file=split)
    assert len(found["copies_across_parts"]) == 4  # pyright: ignore[reportArgumentType]
    assert len(found["cases_across_parts"]) == 4  # pyright: ignore[reportArgumentType]
    assert "train and test share images" in text


def test_two_folders_are_compared_with_each_other(tmp_path: Path) -> None:
    for name in ("train", "test"):
        for number in range(4):
            seed = number if name == "train" else number + 3
            draw_image(tmp_path / name / ("benign", "malignant")[number % 2] / f"{name}{number}.png", seed)
    _, found, rows = run(tmp_path / "out", tmp_path / "train", tmp_path / "test", exact_only=True)
    assert found["exact_copies"] == {"groups": 1, "tiles": 2, "surplus": 1}
    assert {Path(row["folder"]).name for row in rows} == {"train", "test"}


def test_the_groups_of_two_folders_fit_the_folder_above_them(tmp_path: Path) -> None:
    """train/benign/x.png and test/benign/x.png are two tiles: each is in its own group, found below the root above."""
    for split, seed in (("train", 1), ("test", 2)):
        for copy in ("x", "y"):
            draw_image(tmp_path / split / "benign" / f"{copy}.png", seed)
        for number in range(8):
            draw_image(tmp_path / split / "malignant" / f"{split}{number}.png", 10 * seed + number)
            draw_image(tmp_path / split / "benign" / f"{split}{number}.png", 100 * seed + number)
    _, _, rows = run(tmp_path / "out", tmp_path / "train", tmp_path / "test", exact_only=True)
    assert {row["path"] for row in rows} == {f"{s}/benign/{c}.png" for s in ("train", "test") for c in "xy"}
    (tmp_path / "out").rename(tmp_path.with_name(f"{tmp_path.name}-out"))
    groups = tmp_path.with_name(f"{tmp_path.name}-out") / "groups.csv"
    data = HistologyDataModule(tmp_path, groups_file=groups, num_workers=0)
    data.setup()
    group = {tile.path: tile.group for tile in data.tiles}
    assert group["train/benign/x.png"] == group["train/benign/y.png"]
    assert group["train/benign/x.png"] != group["test/benign/x.png"] == group["test/benign/y.png"]


def test_the_nested_folder_and_the_zip_are_read_as_training_reads_them(tmp_path: Path) -> None:
    """The notebook's: conflicts and splits are seen, and groups.csv is taken back."""
    nested = tmp_path / "Breast_Cancer" / "Breast Cancer"
    for split in ("train", "test"):
        for number in range(8):
            draw_image(nested / split / "benign" / f"{number}.png", number + 50 * (split == "test"))
            draw_image(nested / split / "malignant" / f"{number}.png", number + 100 + 50 * (split == "test"))
    draw_image(nested / "train" / "malignant" / "conflict.png", 0)  # the content of train/benign/0.png
    shutil.make_archive(str(tmp_path / "zipped"), "zip", tmp_path / "Breast_Cancer")
    for number, root in enumerate((tmp_path / "Breast_Cancer", tmp_path / "zipped.zip")):
        _, found, rows = run(tmp_path / f"out{number}", root, exact_only=True)
        assert found["parts"] == {"train": 17, "test": 16}
        assert len(found["conflicting_labels"]) == 1  # pyright: ignore[reportArgumentType]
        assert {row["path"] for row in rows} == {"train/benign/0.png", "train/malignant/conflict.png"}
        data = HistologyDataModule(root, groups_file=tmp_path / f"out{number}" / "groups.csv", num_workers=0)
        data.setup()
        assert len({tile.group for tile in data.tiles}) == 32


def test_classes_that_differ_in_storage_or_colour_are_told(tmp_path: Path) -> None:
    for number in range(10):
        draw_image(tmp_path / "t" / "benign" / f"{number}.png", number, size=(8, 8))
        red = np.random.default_rng(number).integers(100, 255, (16, 16, 3)) // (1, 4, 4)
        (tmp_path / "t" / "malignant").mkdir(exist_ok=True)
        Image.fromarray(red.astype(np.uint8)).save(tmp_path / "t" / "malignant" / f"{number}.jpg")
    (tmp_path / "t" / "benign" / "broken.png").write_bytes(b"no image")
    text, found, _ = run(tmp_path / "out", tmp_path / "t", exact_only=True)
    assert found["storage"].keys() == {"size", "format", "dots an inch"} or found["storage"].keys() == {  # pyright: ignore[reportAttributeAccessIssue]
        "size",
        "format",
    }
    assert found["colour_only"]["auroc"] > 0.95  # pyright: ignore[reportIndexIssue]
    assert [Path(path).name for path in found["unreadable"]] == ["broken.png"]  # pyright: ignore[reportGeneralTypeIssues]
    assert "AUROC 1.000" in text


def test_an_empty_folder_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="There is no image to audit"):
        main(["audit", str(tmp_path)])
    with pytest.raises(UserError, match="group_regex finds no case"):
        draw_image(tmp_path / "a" / "1.png")
        audit_tiles([tmp_path], group_regex="x(1)", out=tmp_path / "out")
