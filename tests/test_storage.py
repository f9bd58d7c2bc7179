"""A file is whole or absent, whatever happens while it is written, and reading one runs nothing."""

import os
import pickle
import shlex
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from histo_pl.errors import UserError, WriteError
from histo_pl.storage import atomic_write, atomic_write_text, load_tensors, new_folder, refuse_results, save_tensors


class Harm:
    """Unpickled without care, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {shlex.quote(str(self.marker))}",)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no disk can be mounted here: {error}")
    if mounted.returncode != 0:
        pytest.skip(f"no disk can be mounted here, as only root may: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_what_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(ValueError, match="half way"), atomic_write(file) as unfinished:
        unfinished.write_text("ne")
        assert file.read_text() == "old"
        raise ValueError("half way")
    with pytest.raises(KeyboardInterrupt), atomic_write_text(file) as stream:
        stream.write("ne")
        raise KeyboardInterrupt
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


def test_what_succeeds_takes_the_old_files_place(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old, and longer")
    with atomic_write_text(file) as stream:
        stream.write("new\n")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.txt", b"new\n")]


def test_another_name_of_the_old_file_keeps_its_content(tmp_path: Path) -> None:
    file, other = tmp_path / "a.ckpt", tmp_path / "b.ckpt"
    save_tensors({"x": torch.zeros(3)}, file)
    os.link(file, other)
    save_tensors({"x": torch.ones(3)}, file)
    assert load_tensors(file)["x"].tolist() == [1, 1, 1]
    assert load_tensors(other)["x"].tolist() == [0, 0, 0]


def test_a_full_disk_leaves_the_old_checkpoint(small_disk: Path) -> None:
    file = small_disk / "a.ckpt"
    save_tensors({"x": torch.zeros(3)}, file)
    with pytest.raises(WriteError, match="No space left") as caught:
        save_tensors({"x": torch.ones(1_000_000)}, file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert load_tensors(file)["x"].tolist() == [0, 0, 0]
    assert [path.name for path in small_disk.iterdir()] == ["a.ckpt"]


def test_a_full_disk_leaves_the_old_text(small_disk: Path) -> None:
    file = small_disk / "a.csv"
    file.write_text("old")
    with pytest.raises(WriteError, match="No space left") as caught, atomic_write_text(file) as stream:
        for _ in range(4096):
            stream.write("1," * 512)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [(path.name, path.read_text()) for path in small_disk.iterdir()] == [("a.csv", "old")]


def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    file = tmp_path / "gone" / "a.csv"
    with pytest.raises(WriteError, match="No such file or directory"), atomic_write_text(file) as stream:
        stream.write("x")
    with pytest.raises(WriteError, match="No such file or directory"):
        save_tensors({"x": torch.ones(3)}, file)


def test_new_folders_of_one_name_are_different(tmp_path: Path) -> None:
    pattern = str(tmp_path / "runs" / "run")
    with ThreadPoolExecutor(8) as pool:
        folders = [new_folder(pattern), new_folder(pattern), *pool.map(new_folder, [pattern] * 24)]
    assert folders[0] == pattern
    assert len(set(folders)) == 26
    assert all(Path(folder).is_dir() for folder in folders)


def test_a_folder_that_cannot_be_made_is_named_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert new_folder(str(tmp_path / "file" / "run")) == str(tmp_path / "file" / "run")


def test_results_of_another_run_are_refused(tmp_path: Path) -> None:
    names = ("audit.json", "groups.csv")
    refuse_results(tmp_path / "absent", names, "--out")
    (tmp_path / "notes.txt").touch()
    refuse_results(tmp_path, names, "--out")
    (tmp_path / "groups.csv").touch()
    with pytest.raises(UserError, match=r"\(groups\.csv\), which would be lost.*Leave --out out"):
        refuse_results(tmp_path, names, "--out")


@pytest.mark.parametrize("of_today", [True, False])
def test_tensors_of_any_version_are_read(tmp_path: Path, of_today: bool) -> None:
    torch.save({"x": torch.arange(3)}, tmp_path / "x.pth", _use_new_zipfile_serialization=of_today)
    assert load_tensors(tmp_path / "x.pth")["x"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("of_today", [True, False])
def test_a_file_that_holds_code_is_not_run(tmp_path: Path, of_today: bool) -> None:
    file = tmp_path / "x.pth"
    torch.save({"x": Harm(tmp_path / "marker")}, file, _use_new_zipfile_serialization=of_today)
    with pytest.raises(pickle.UnpicklingError):
        load_tensors(file)
    assert not (tmp_path / "marker").exists()
    torch.load(file, weights_only=False)
    assert (tmp_path / "marker").exists()  # it would have
