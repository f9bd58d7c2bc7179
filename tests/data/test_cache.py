import csv
import multiprocessing
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.transforms import v2

from histo_pl.data import HistologyDataModule
from histo_pl.data import cache as caches
from histo_pl.data.cache import MappedTiles, decode, tiles_on_device, tiles_on_disk
from histo_pl.data.transforms.keras_affine import KerasRandomAffine
from histo_pl.errors import ImageError, UserError
from histo_pl.images import RESIZE, read_tile
from tests.conftest import draw_image

SIZE = 16
MakeFolder = Callable[..., Path]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [draw_image(tmp_path / "tiles" / f"{number}.png", number, (20, 24)) for number in range(5)]


def losses(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as stream:
        return [float(row[name]) for row in csv.DictReader(stream) for name in ("train/loss", "val/loss")]


def test_every_cache_trains_alike(run_training: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    options = ("augment=keras", "trainer.max_epochs=2", f"data.cache_dir={tmp_path / 'cache'}", "colour_baseline=false")
    for cache in caches.CACHES:
        run_training(*options, f"data.cache={cache}", folder=cache)
        assert losses(tmp_path / cache) == pytest.approx(losses(tmp_path / "none"), abs=1e-5)


@pytest.mark.parametrize("chunk", [2, 128])
def test_a_cache_holds_what_the_files_do(files: list[Path], chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "CHUNK", chunk)
    expected = torch.stack([read_tile(file, SIZE) for file in files])
    disk = tiles_on_disk(files, SIZE, RESIZE, files[0].parents[1] / "cache")
    assert torch.equal(torch.stack([disk[place] for place in range(5)]), expected)
    assert torch.equal(tiles_on_device(files, SIZE, RESIZE, "cpu"), expected)


def test_the_disk_is_written_once_and_again_when_a_tile_changes(files: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    tiles_on_disk(files, SIZE, RESIZE, folder)
    (kept,) = folder.glob("*.tiles")
    before = kept.stat().st_mtime_ns
    tiles_on_disk(files, SIZE, RESIZE, folder)
    assert kept.stat().st_mtime_ns == before
    draw_image(files[2], 99, (20, 24))
    os.utime(files[2], ns=(0, 0))
    changed = tiles_on_disk(files, SIZE, RESIZE, folder)
    assert torch.equal(changed[2], read_tile(files[2], SIZE))
    assert [file for file in folder.glob("*.tiles") if file != changed.file] == []


def test_two_sizes_keep_their_files(files: list[Path], tmp_path: Path) -> None:
    for size in (SIZE, 8):
        tiles_on_disk(files, size, RESIZE, tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.tiles"))) == 2


def test_what_a_killed_run_left_is_not_taken_for_tiles(files: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    kept = tiles_on_disk(files, SIZE, RESIZE, folder).file
    half = kept.with_name(f".{kept.stem}.part.tiles")
    kept.rename(half)
    half.write_bytes(b"half")
    assert torch.equal(tiles_on_disk(files, SIZE, RESIZE, folder)[4], read_tile(files[4], SIZE))
    assert not half.exists()


def test_an_unreadable_tile_leaves_no_file(files: list[Path], tmp_path: Path) -> None:
    files[3].write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"3\.png"):
        tiles_on_disk(files, SIZE, RESIZE, tmp_path / "cache")
    assert not [file for file in (tmp_path / "cache").iterdir() if file.suffix != ".lock"]


def build(files: list[Path], folder: Path, queue: Any) -> None:
    tiles = tiles_on_disk(files, SIZE, RESIZE, folder)
    queue.put(int(sum(tiles[place].sum() for place in range(len(files)))))


def test_several_processes_share_one_file(files: list[Path], tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=build, args=(files, tmp_path / "cache", queue)) for _ in range(3)]
    for process in processes:
        process.start()
    expected = sum(int(read_tile(file, SIZE).sum()) for file in files)
    assert [queue.get(timeout=60) for _ in processes] == [expected] * 3
    for process in processes:
        process.join()
    assert len(list((tmp_path / "cache").glob("*.tiles"))) == 1


def test_mapped_tiles_travel_by_name(files: list[Path], tmp_path: Path) -> None:
    tiles = tiles_on_disk(files, SIZE, RESIZE, tmp_path / "cache")
    sent = pickle.dumps(tiles)
    assert len(sent) < 1000
    there: MappedTiles = pickle.loads(sent)
    assert torch.equal(there[1], tiles[1])


def test_tiles_that_do_not_fit_are_refused(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "_memory", lambda: 1000.0)
    with pytest.raises(UserError, match=r"do not fit.*Received: 0\.0 GB of memory"):
        tiles_on_device(files, SIZE, RESIZE, "cpu")
    monkeypatch.setattr(caches.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(UserError, match=r"data\.cache_dir on a larger disk"):
        tiles_on_disk(files, SIZE, RESIZE, tmp_path / "cache")


def test_decoding_goes_no_further_than_the_damaged_tile(files: list[Path]) -> None:
    files[0].write_bytes(b"no image")
    with pytest.raises(ImageError):
        next(decode(files, SIZE, RESIZE))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache": "memory"}, "Expected one of none, ram, disk, device"),
        ({"cache": "device", "augment": v2.RandomHorizontalFlip()}, "drawn tile by tile, as the default"),
        ({"cache": "device", "num_workers": 2}, r"Received: data\.num_workers=2"),
        ({"cache": "device", "pin_memory": True}, r"Received: data\.pin_memory=True"),
        ({"cache": "ram", "prefetch_factor": 4}, r"Received: data\.prefetch_factor=4 and none"),
    ],
)
def test_a_cache_that_cannot_be_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        HistologyDataModule(tmp_path, **options)


def test_an_augmentation_in_place_does_not_reach_the_cache(make_folder: MakeFolder) -> None:
    root = make_folder({"benign": 10, "malignant": 10})
    blacken = v2.Lambda(lambda tile: tile.zero_())
    data = HistologyDataModule(root, image_size=8, num_workers=0, augment=blacken, cache="ram")
    data.setup()
    assert next(iter(data.train_dataloader()))["image"].sum() == 0
    assert next(iter(data.test_dataloader()))["image"].sum() > 0
    assert data._reader(data.tiles[0]).sum() > 0


def test_workers_are_started_for_what_needs_them(tmp_path: Path) -> None:
    def workers(**options: Any) -> int:
        return HistologyDataModule(tmp_path, **options).num_workers

    assert workers() > 0 and workers(cache="ram", augment=v2.RandomHorizontalFlip()) > 0
    assert workers(cache="ram") == workers(cache="disk", augment=KerasRandomAffine(20)) == 0
    assert workers(cache="ram", num_workers=3) == 3


def test_a_folder_that_cannot_be_written_is_told(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"cannot be kept.*data\.cache_dir"):
        tiles_on_disk(files, SIZE, RESIZE, tmp_path / "cache")


def test_embeddings_take_no_other_cache(run_training: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(UserError, match=r"Received: data\.cache=ram"):
        run_training("experiment=linear_probe", "data.cache=ram")
