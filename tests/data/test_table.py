"""Tables of labels and of cases, instead of what folders say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from histo_pl.data.source import TileSource
from histo_pl.errors import UserError
from tests.conftest import draw_image
from tests.data.test_datamodule import open_folder

NAMES = [f"{number:02}" for number in range(20)]
Write = Callable[..., Path]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A flat folder of images, as PatchCamelyon's."""
    for number, name in enumerate(NAMES):
        draw_image(tmp_path / "images" / f"{name}.tif", number)
    return tmp_path / "images"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_table(header: str, rows: list[str], name: str = "labels.csv", encoding: str = "utf-8") -> Path:
        file = tmp_path / name
        file.write_text("\n".join([header, *rows]) + "\n", encoding=encoding)
        return file

    return write_table


def test_labels_come_from_a_table_with_other_names(images: Path, write: Write) -> None:
    """PatchCamelyon's train_labels.csv: id,label without suffixes."""
    table = write("id,label", [f"{name},{int(name) % 2}" for name in NAMES], encoding="utf-8-sig")
    options: dict[str, Any] = {"table": table, "table_columns": {"path": "id"}, "suffix": ".tif"}
    with pytest.raises(UserError, match=r"data\.positive_class=NAME.*0, 1"):
        open_folder(images, **options)
    data = open_folder(images, **options, positive_class=1)
    assert all((tile.class_name == "1") == (int(tile.path[:2]) % 2 == 1) for tile in data.tiles)
    assert len(data.tiles) == 20


def test_cases_splits_and_further_columns_come_from_a_table(images: Path, write: Write) -> None:
    rows = [
        f"{name}.tif\t{'tumour' if int(name) % 2 else 'normal'}\tp{int(name) // 4}\t"
        f"{('train', 'validation', 'Test')[int(name) // 8]}\tscan{int(name) % 3}"
        for name in NAMES
    ]
    table = write("path\tlabel\tcase\tsplit\tscanner", rows, "labels.tsv")
    data = open_folder(images, table=table)
    assert {data.split_of[f"{name}.tif"] for name in NAMES[:8]} == {"train"}
    assert {data.split_of[f"{name}.tif"] for name in NAMES[16:]} == {"test"}
    assert data.summary()["parts"]["test"]["cases"] == 1
    assert data.values_of_columns(["04.tif"]) == {"scanner": ["scan1"]}


def test_paths_from_above_a_lone_folder_fit_too(images: Path, write: Write) -> None:
    (images / "inner" / "deep").mkdir(parents=True)
    for file in images.glob("*.tif"):
        file.rename(images / "inner" / "deep" / file.name)
    labels = {name: "benign" if int(name) % 2 else "malignant" for name in NAMES}
    table = write("path,label", [f"inner/deep/{name}.tif,{label}" for name, label in labels.items()])
    assert {tile.path for tile in TileSource(images, table=table).read().tiles} == {f"deep/{n}.tif" for n in NAMES}


def test_a_patient_in_two_splits_of_a_table_is_counted(images: Path, write: Write) -> None:
    rows = [
        f"{name}.tif,{'ab'[int(name) % 2]},p{int(name) % 4 // 2},{'train' if int(name) < 10 else 'test'}"
        for name in NAMES
    ]
    with pytest.raises(UserError, match=r"2 divided cases"):
        open_folder(images, table=write("path,label,case,split", rows), positive_class="b")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (NAMES[:12], r"files without a row, 8: 12\.tif, 13\.tif, 14\.tif, 15\.tif, 16\.tif, \.\.\."),
        ([*NAMES, "99"], r"rows without a file, 1: 99\.tif"),
        ([*NAMES, "00"], r"paths in several rows, 1: 00\.tif"),
    ],
)
def test_a_table_that_does_not_match_the_folder_is_refused(
    images: Path, write: Write, rows: list[str], message: str
) -> None:
    table = write("path,label", [f"{name}.tif,{'benign' if int(name) % 2 else 'malignant'}" for name in rows])
    with pytest.raises(UserError, match=message):
        open_folder(images, table=table)


def test_a_row_without_a_label_or_with_an_odd_split_is_refused(images: Path, write: Write) -> None:
    with pytest.raises(UserError, match=r"rows without a label, 20: 00\.tif"):
        open_folder(images, table=write("path,label", [f"{name}.tif," for name in NAMES]))
    rows = [f"{name}.tif,{int(name) % 2},fold1" for name in NAMES]
    with pytest.raises(UserError, match=r"unknown split.*'fold1'"):
        open_folder(images, table=write("path,label,split", rows), positive_class=1)
    with pytest.raises(UserError, match=r"unknown key.*cases"):
        open_folder(images, table=write("path,label,split", rows), table_columns={"cases": "x"})
    with pytest.raises(UserError, match=r"lacks the column path. Expected it.*table_columns.path=NAME"):
        open_folder(images, table=write("id,label", rows))


def test_a_misspelt_column_is_refused_and_a_third_label_asked_about(images: Path, write: Write) -> None:
    rows = [f"{name}.tif,{('tumor', 'normal')[int(name) % 2]},{int(name) // 4}" for name in NAMES]
    with pytest.raises(UserError, match=r"lacks the column patiant.*table_columns\.case=NAME.*path, label, patient"):
        open_folder(images, table=write("path,label,patient", rows), table_columns={"case": "patiant"})
    rows[0] = rows[0].replace("tumor", "tumour")
    table = write("path,label,patient", rows)
    with pytest.raises(UserError, match=r"3 labels.*data\.negative_class.*normal \(10 tiles\).*tumour \(1 tiles?\)"):
        open_folder(images, table=table, positive_class="tumor")
    both = TileSource(images, table=table, positive_class=["tumor", "tumour"], negative_class="normal").read()
    assert sum(tile.class_name == "tumor, tumour" for tile in both.tiles) == 10


def test_files_that_are_left_out_need_no_row_and_may_have_one(images: Path, write: Write) -> None:
    table = write("path,label", [f"{name}.tif,{'benign' if int(name) % 2 else 'malignant'}" for name in NAMES[:15]])
    found = TileSource(images, table=table, exclude=["1[5-9].tif", "00.tif"]).read()
    assert (len(found.tiles), found.left_out) == (14, 6)


def test_cases_come_from_a_file_by_path_or_stem(make_folder: Callable[..., Path], write: Write) -> None:
    root = make_folder({"benign": 6, "malignant": 6})
    by_path = [
        f"{name}/tile{number:03}.png,{name}{number // 2}" for name in ("benign", "malignant") for number in range(6)
    ]
    data = open_folder(root, cases_file=write("path,case", by_path))
    assert len({tile.case for tile in data.tiles}) == 6
    stems = write("path,case", [f"tile{number:03},p{number}" for number in range(6)], "stems.csv")
    assert {tile.case for tile in TileSource(root, cases_file=stems).read().tiles} == {f"p{n}" for n in range(6)}
    with pytest.raises(UserError, match=r"Tiles have no case.* without 2: benign/tile005.png, malignant/tile005.png"):
        open_folder(root, cases_file=write("path,case", [f"tile{number:03},p" for number in range(5)], "few.csv"))
    with pytest.raises(UserError, match=r"two cases.*tile000"):
        open_folder(root, cases_file=write("path,case", ["tile000,p", "tile000,q"], "twice.csv"))


def test_cases_are_given_once(images: Path, write: Write) -> None:
    table = write(
        "path,label,case", [f"{name}.tif,{'benign' if int(name) % 2 else 'malignant'},{name}" for name in NAMES]
    )
    with pytest.raises(UserError, match=r"given twice.*Received: a case column of data.table and data.group_regex"):
        open_folder(images, table=table, group_regex=r"\d")
    data = open_folder(images, table=table, group_regex=r"\d(\d)", table_columns={"case": "none"})
    assert len({tile.case for tile in data.tiles}) == 10
    some = write(
        "path,label,case",
        [f"{name}.tif,{'benign' if int(name) % 2 else 'malignant'}," for name in NAMES[:-1]] + ["19.tif,benign,p"],
    )
    with pytest.raises(UserError, match=r"none for 19: 00.tif"):
        open_folder(images, table=some)
