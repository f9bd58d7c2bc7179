"""Every layout of docs/data.md, made small, and every line that stands there, run as it stands."""

import re
import shlex
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from histo_pl.__main__ import main
from tests.conftest import ROOT, TINY, compose_config, draw_image, evaluate, train
from tests.test_readme import arguments_of

PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def draw(root: Path, path: str) -> None:
    draw_image(root / path, zlib.crc32(path.encode()))


def make_tiles(root: Path) -> None:
    for class_name in ("benign", "malignant"):
        for number in range(20):
            patient = f"patient{number % 5}{class_name[0]}"
            draw(root, f"tiles/{class_name}/{patient.replace(patient[-1], str(ord(patient[-1])))}_{number}.png")
    draw(root, "tiles/benign/patient098_20_bad.png")
    rows = [f"{path.stem},{path.stem.split('_')[0]}" for path in (root / "tiles").rglob("*.png")]
    (root / "cases.csv").write_text("\n".join(["path,case", *rows]))
    (root / "tiles" / "README.txt").touch()


def make_zip(root: Path) -> None:
    content = draw_image(root / "one.png").read_bytes()
    with zipfile.ZipFile(root / "Breast_Cancer.zip", "w") as archive:
        for part in ("train", "test"):
            for kind in ("breast_benign", "breast_malignant"):
                for number in range(6):
                    archive.writestr(f"Breast Cancer/{part}/{kind}/{number}.png", content)
        archive.writestr("__MACOSX/Breast Cancer/train/breast_benign/._0.png", content)


def make_photos(root: Path) -> None:
    for class_name in ("Benign", "InSitu", "Invasive", "Normal"):
        for number in range(8):
            draw(root, f"Photos/{class_name}/{class_name[0].lower()}{number:03}.tif")


def make_published(root: Path) -> None:
    for part in ("Training", "validation", "test"):
        for class_name in ("benign", "malignant"):
            for number in range(5):
                draw(root, f"published/{part}/{class_name}/{number}.png")


def make_idc(root: Path) -> None:
    for patient in range(10253, 10265):
        for label in ("0", "1") if patient % 2 else ("0",):
            for number in range(3):
                draw(root, f"IDC/{patient}/{label}/{patient}_idx5_x{number}001_y1001_class{label}.png")


def make_breakhis(root: Path) -> None:
    for class_name, subtype, letter in (
        ("benign", "adenosis", "A"),
        ("malignant", "ductal_carcinoma", "DC"),
        ("malignant", "lobular_carcinoma", "LC"),
    ):
        kind = class_name[0].upper()
        for slide in range(6):
            case = f"14-{ord(letter[0])}{slide}"
            for magnification in (40, 200):
                name = f"SOB_{kind}_{letter}-{case}AB-{magnification}-001.png"
                folder = f"SOB/{subtype}/SOB_{kind}_{letter}_{case}AB/{magnification}X"
                draw(root, f"BreaKHis_v1/histology_slides/breast/{class_name}/{folder}/{name}")
    (root / "BreaKHis_v1" / "README.txt").touch()
    (root / "BreaKHis_v1" / "Folds.csv").touch()


def make_pcam(root: Path) -> None:
    rows = ["id,label"]
    for number in range(20):
        draw(root, f"pcam/{number:040x}.tif")
        rows.append(f"{number:040x},{number % 2}")
    (root / "train_labels.csv").write_text("\n".join(rows))


MAKERS = {
    "tiles": make_tiles,
    "Breast_Cancer.zip": make_zip,
    "Photos": make_photos,
    "published": make_published,
    "IDC": make_idc,
    "BreaKHis_v1": make_breakhis,
    "pcam": make_pcam,
}


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_the_page_works(
    line: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (root,) = {word for word in re.split(r"[ =]", line) if word in MAKERS}
    MAKERS[root](tmp_path)
    monkeypatch.chdir(tmp_path)
    if line.startswith("python train.py"):
        results = train(compose_config("train", *arguments_of(line), *TINY, f"run_dir={tmp_path / 'run'}"))
        assert results["test"]["tiles"] > 0
        assert (tmp_path / "run" / "report.html").is_file()
    elif line.startswith("python evaluate.py"):
        own = [f"ckpt={trained}", "data.num_workers=0", f"run_dir={tmp_path / 'run'}"]
        assert evaluate(compose_config("evaluate", *arguments_of(line), *own))["test"]["tiles"] > 0
    else:
        main([*shlex.split(line)[3:], "--exact-only", "--out", str(tmp_path / "out")])
        assert (tmp_path / "out" / "flagged.csv").is_file()
        assert "tiles:" in capsys.readouterr().out


def test_every_layout_is_trained_evaluated_and_audited() -> None:
    for root in MAKERS:
        own = [line for line in LINES if re.search(rf"[ =]{root}( |$)", line)]
        for program in ("python train.py", "python evaluate.py", "python -m histo_pl audit"):
            assert any(line.startswith(program) for line in own), (root, program)


def make_damaged(root: Path) -> Path:
    for name in ("benign", "malignant"):
        for number in range(20):
            draw(root, f"tiles/{name}/{number}.png")
    for name in ("benign/1", "benign/2", "malignant/3"):
        file = root / "tiles" / f"{name}.png"
        file.write_bytes(file.read_bytes()[:80])
    (root / "tiles/malignant/4.png").write_bytes(b"")
    (root / "tiles/malignant/5.png").write_text("text")
    return root / "tiles"


def test_a_report_counts_the_files_that_were_left_out(tmp_path: Path) -> None:
    data = ("data=folder", f"data.root={make_damaged(tmp_path)}", "data.on_error=skip")
    results = train(compose_config("train", *data, *TINY, f"run_dir={tmp_path / 'run'}"))
    assert results["data"]["checked"]["unreadable_skipped"] == 5
    assert "cannot be read (data.on_error=skip): 5" in (tmp_path / "run" / "report.html").read_text()
    assert len((tmp_path / "run" / "skipped.csv").read_text().splitlines()) == 6


def make_windows_zip(root: Path) -> Path:
    content = draw_image(root / "one.png").read_bytes()
    with zipfile.ZipFile(root / "tiles.zip", "w") as archive:
        for name in ("benign", "malignant"):
            for number in range(10):
                archive.writestr(f"tiles\\{name}\\{number}.png", content + bytes([number]))
    return root / "tiles.zip"


def make_strays(root: Path) -> Path:
    for name in ("Benign", "Malignant"):
        for number in range(10):
            draw(root, f"download/inner/{name}/slide {number % 5}/deep/{number}.png")
    for file in ("download/README.txt", "download/inner/Folds.csv", "download/.DS_Store"):
        (root / file).touch()
    (root / "download" / "empty" / "deeper").mkdir(parents=True)
    return root / "download"


def make_capitals(root: Path) -> Path:
    for split in ("Train", "Validation", "Testing"):
        for name in ("benign", "malignant"):
            for number in range(5):
                draw(root, f"splits/{split}/{name}/{split}{number}.png")
    return root / "splits"


def make_links(root: Path) -> Path:
    for name in ("benign", "malignant"):
        for number in range(10):
            draw(root, f"elsewhere/{name}/{number}.png")
        (root / "linked").mkdir(exist_ok=True)
        (root / "linked" / name).symlink_to(root / "elsewhere" / name)
    (root / "linked" / "benign" / "loop").symlink_to(root / "linked")
    return root / "linked"


@pytest.mark.parametrize("make", [make_windows_zip, make_strays, make_capitals, make_links])
def test_a_download_is_trained_as_it_is(make: Callable[[Path], Path], tmp_path: Path) -> None:
    results = train(
        compose_config("train", "data=folder", f"data.root={make(tmp_path)}", *TINY, f"run_dir={tmp_path / 'run'}")
    )
    counts = results["data"]["parts"]
    assert sum(split["tiles"] for split in counts.values()) == (30 if make is make_capitals else 20)
    assert all(split["tiles"] > 0 for split in counts.values())
