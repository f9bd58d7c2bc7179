from pathlib import Path

import pytest

from histo_pl.errors import UserError
from histo_pl.slides.scale import Scale, unknown_scale

SLIDE = Path("folder/a.svs")


def test_the_user_goes_before_the_file_and_a_slides_own_before_all(tmp_path: Path) -> None:
    (tmp_path / "mpp.csv").write_text("slide,mpp,scanner\na.svs,0.23,x\n")
    both = Scale.of(0.5, None, str(tmp_path / "mpp.csv"))
    assert both.find(SLIDE, 0.3) == 0.23
    assert both.find(Path("b.svs"), 0.3) == 0.5
    assert Scale.of(None, 20, None).find(SLIDE, None) == 0.5
    assert Scale().find(SLIDE, 0.3) == 0.3
    assert Scale().find(SLIDE, None) is None


@pytest.mark.parametrize("of_print", [352.8, 0.0049, 25.4])
def test_dots_an_inch_of_print_are_no_scale(of_print: float) -> None:
    assert Scale().find(SLIDE, of_print) is None


def test_the_error_names_all_ways() -> None:
    message = str(unknown_scale(SLIDE, Scale()))
    assert all(way in message for way in ("mpp=", "magnification=", "mpp_file=", "a file", "tile=PIXELS", str(SLIDE)))


def test_the_error_of_a_slide_that_the_table_lacks_names_its_rows() -> None:
    assert "1: b.svs" in str(unknown_scale(SLIDE, Scale(None, {"b.svs": 0.5})))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.5, 20, None), "given twice"),
        ((0, None, None), "mpp is out of range"),
        ((50, None, None), "mpp is out of range. Expected a number from 0.01 to 20"),
        ((None, -1, None), "magnification is out of range"),
        ((None, None, "slide,mpp\na.svs,0.5\na.svs,0.25\n"), "names a slide twice"),
        ((None, None, "slide,mpp\na.svs,99\n"), "99 for a.svs"),
        ((None, None, "slide,mpp\na.svs,half\n"), "half for a.svs"),
        ((None, None, "slide,mpp\na.svs,\n"), "nothing for a.svs"),
        ((None, None, "name,mpp\na.svs,1\n"), "lacks a column"),
    ],
)
def test_a_wrong_scale_is_one_line(arguments: tuple, message: str, tmp_path: Path) -> None:
    mpp, magnification, table = arguments
    if table:
        (tmp_path / "x.csv").write_text(table)
        table = str(tmp_path / "x.csv")
    with pytest.raises(UserError, match=message):
        Scale.of(mpp, magnification, table)
