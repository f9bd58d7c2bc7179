from collections import Counter
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
from torchvision.transforms import v2

from histo_pl.data import HistologyDataModule
from histo_pl.errors import UserError
from tests.conftest import BREAKHIS, draw_image

MakeFolder = Callable[..., Path]


def open_folder(root: Path, **options: object) -> HistologyDataModule:
    data = HistologyDataModule(root, **({"image_size": 8, "num_workers": 0, "batch_size": 4} | options))  # pyright: ignore[reportArgumentType]
    data.setup()
    return data


def test_flat_folder_is_split_into_three(make_folder: MakeFolder) -> None:
    data = open_folder(make_folder({"benign": 50, "malignant": 50}))
    assert Counter(data.split_of.values()) == {"train": 64, "val": 16, "test": 20}
    assert data.summary()["parts"]["val"] == {"tiles": 16, "malignant": 8, "cases": None}


def test_a_test_folder_is_kept(make_folder: MakeFolder) -> None:
    root = make_folder({"train/benign": 10, "train/malignant": 10, "test/benign": 3, "test/malignant": 4})
    data = open_folder(root)
    assert Counter(data.split_of.values()) == {"train": 16, "val": 4, "test": 7}
    assert all(path.startswith("test/") for path, part in data.split_of.items() if part == "test")


def test_the_originals_folder_gives_6400_and_1600(tmp_path: Path) -> None:
    content = draw_image(tmp_path / "one.png", size=(1, 1)).read_bytes()
    for part, count in (("train", 4000), ("test", 10)):
        for class_name in ("breast_benign", "breast_malignant"):
            folder = tmp_path / "tiles" / part / class_name
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.png").write_bytes(content)
    data = open_folder(tmp_path / "tiles")
    parts = data.summary()["parts"]
    assert parts["train"] == {"tiles": 6400, "malignant": 3200, "cases": None}
    assert parts["val"] == {"tiles": 1600, "malignant": 800, "cases": None}
    assert parts["test"]["tiles"] == 20


def test_every_sample_carries_its_path_and_label(make_folder: MakeFolder) -> None:
    data = open_folder(make_folder({"normal": 10, "cancer": 10}))
    batch = next(iter(data.test_dataloader()))
    assert batch["image"].shape == (4, 3, 8, 8)
    assert batch["image"].dtype == torch.uint8
    assert batch["label"].tolist() == [int("cancer" in path) for path in batch["path"]]


def test_only_training_tiles_are_augmented(make_folder: MakeFolder) -> None:
    root = make_folder({"benign": 10, "malignant": 10})
    data = open_folder(root, augment=v2.Lambda(torch.zeros_like))
    assert next(iter(data.train_dataloader()))["image"].max() == 0
    assert next(iter(data.val_dataloader()))["image"].max() > 0
    assert next(iter(data.test_dataloader()))["image"].max() > 0


def test_processes_that_read_validation_tiles_are_forked_before_the_training(make_folder: MakeFolder) -> None:
    data = open_folder(make_folder({"benign": 20, "malignant": 20}), num_workers=1, batch_size=2)
    others = set(active_children())
    loader = data.val_dataloader()
    assert len(set(active_children()) - others) == 1
    expected = [tile.path for tile in data.tiles_of("val")]
    for _ in range(2):
        assert [path for batch in loader for path in batch["path"]] == expected


def test_a_split_file_is_taken_back(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"benign": 20, "malignant": 20})
    first = open_folder(root, seed=7)
    first.write_split(tmp_path / "split.csv")
    again = open_folder(root, seed=1, split_file=tmp_path / "split.csv")
    assert again.split_of == first.split_of
    assert again.summary()["split"] == first.summary()["split"]


def test_a_split_file_may_move_tiles_between_train_and_test_folders(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"train/benign": 4, "train/malignant": 4, "test/benign": 2, "test/malignant": 2})
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    rows = [f"{path},{('train', 'val', 'test')[i % 3]}" for i, path in enumerate(paths)]
    (tmp_path / "split.csv").write_text("\n".join(["path,split", *rows]))
    data = open_folder(root, split_file=tmp_path / "split.csv")
    batch_paths = [path for batch in data.val_dataloader() for path in batch["path"]]
    assert sorted(batch_paths) == paths[1::3]


def test_cases_on_both_sides_are_refused(make_folder: MakeFolder) -> None:
    root = make_folder({"train/benign": 6, "train/malignant": 6, "test/benign": 2, "test/malignant": 2})
    with pytest.raises(UserError, match="on two sides"):
        open_folder(root, group_regex=r"\w+/tile\d+")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        open_folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"data\.root=FOLDER"):
        HistologyDataModule(None)


def test_a_broken_link_is_named(make_folder: MakeFolder) -> None:
    root = make_folder({"benign": 10, "malignant": 10})
    (root / "benign" / "x.png").symlink_to(root / "moved.png")
    with pytest.raises(UserError, match="a link to a file that is not there") as caught:
        open_folder(root)
    assert "benign/x.png" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not BREAKHIS.is_dir(), reason="the BreakHis tiles are not beside this repository")
def test_breakhis_is_split_by_case() -> None:
    data = open_folder(BREAKHIS, group_regex=r"SOB_[BM]_[A-Z]+-(\d+-\d+)")
    assert data.positive_class == "breast_malignant"
    assert len(data.tiles) == 839
    assert len({tile.case for tile in data.tiles}) == 44
    assert sum(counts["cases"] for counts in data.summary()["parts"].values()) == 44


def test_columns_are_read_from_paths(make_folder: MakeFolder) -> None:
    data = open_folder(make_folder({"benign": 5, "malignant": 5}), columns={"kind": r"(\w+)/", "no": "x(y)"})
    assert data.values_of_columns(["benign/tile000.png"]) == {"kind": ["benign"], "no": [""]}
