"""Tiles and patients that had a part in the training of the checkpoint that is tested."""

import zlib
from pathlib import Path
from typing import Any

import pytest

from histo_pl import evaluate, load_model
from histo_pl.data.hashing import CaseHashes
from histo_pl.errors import UserError
from tests.conftest import TINY, compose_config, draw_image, train

PATIENTS = {f"p{number}": ("benign", "malignant")[number % 2] for number in range(12)}


def draw(root: Path, patients: list[str], name: str, tiles: int = 4) -> Path:
    for patient in patients:
        for number in range(tiles):
            seed = zlib.crc32(f"{patient} {name} {number}".encode())
            draw_image(root / PATIENTS.get(patient, "benign") / f"{patient}_{name}{number}.png", seed)
    return root


def train_on(root: Path, folder: Path) -> dict[str, Any]:
    data = ("data=folder", f"data.root={root}", r"data.group_regex='(p\d+)_'")
    return train(compose_config("train", *data, *TINY, f"run_dir={folder}"))


def test_new_tiles_of_training_patients_are_counted_and_left_out_on_request(tmp_path: Path) -> None:
    regex = r"(p\d+)_"
    root = draw(tmp_path / "tiles", list(PATIENTS), "40X-")
    run = train_on(root, tmp_path / "run")
    checkpoint = tmp_path / "run" / "best.ckpt"
    model = load_model(checkpoint)
    (known,) = model.training_cases
    assert sorted(known["splits"].values()).count("train") == run["data"]["parts"]["train"]["cases"]
    assert not any(patient in str(model.training_cases) for patient in PATIENTS)
    other = draw(tmp_path / "other", list(PATIENTS), "200X-")
    kept = evaluate(checkpoint, other, group_regex=regex, run_dir=tmp_path / "kept")
    trained = run["data"]["parts"]["train"]["cases"] + run["data"]["parts"]["val"]["cases"]
    assert (kept["seen"]["cases"], kept["seen"]["tiles_of_cases"]) == (trained, 4 * trained)
    assert kept["test"]["tiles"] == 48
    assert any("seen_cases=skip leaves them out" in warning for warning in kept["warnings"])
    left = evaluate(checkpoint, other, group_regex=regex, seen_cases="skip", run_dir=tmp_path / "left")
    assert left["test"]["tiles"] == 48 - 4 * trained
    other_names = evaluate(checkpoint, other, group_regex=r"p(\d+)_", run_dir=tmp_path / "names")
    assert "None of the 12 cases here, such as 0," in str(other_names["seen"]["case_note"])
    unnamed = evaluate(checkpoint, other, run_dir=tmp_path / "unnamed")
    assert "cannot be recognised" in str(unnamed["seen"]["case_note"])
    assert unnamed["test"]["tiles"] == 48
    with pytest.raises(UserError, match="or seen_cases=keep"):
        evaluate(checkpoint, other, seen_cases="skip", run_dir=tmp_path / "unnamed again")


def test_nothing_left_is_one_error(tmp_path: Path) -> None:
    root = draw(tmp_path / "tiles", list(PATIENTS), "a")
    train_on(root, tmp_path / "run")
    for split in ("train", "val"):
        assert split in load_model(tmp_path / "run" / "best.ckpt").training_cases[0]["splits"].values()
    known = (tmp_path / "run" / "split.csv").read_text().splitlines()[1:]
    trained = {line.split(",")[2] for line in known if line.endswith("train")}
    seen = draw(tmp_path / "seen", sorted(trained), "b")
    with pytest.raises(UserError, match="Every tile is of a case"):
        evaluate(
            tmp_path / "run" / "best.ckpt", seen, group_regex=r"(p\d+)_", seen_cases="skip", run_dir=tmp_path / "x"
        )
    with pytest.raises(UserError, match="seen_cases is not as expected"):
        evaluate(tmp_path / "run" / "best.ckpt", seen, seen_cases="drop")


def test_a_case_is_known_by_its_hash_alone() -> None:
    hashes = CaseHashes.of({"14-2773": "train", "14-100": "val"}, "data")
    assert hashes.find(["14-2773", "14-100", "14-1"]) == {"14-2773": "train", "14-100": "val"}
    assert CaseHashes.of({"14-2773": "train"}, "other").splits.keys().isdisjoint(hashes.splits)
    assert "2773" not in str(hashes)
