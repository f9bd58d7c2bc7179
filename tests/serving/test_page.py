"""The page in a real browser: Debian's Chromium, driven by Playwright."""

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from histo_pl import Predictor, load_model
from tests.conftest import draw_image
from tests.serving.server import Server

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if CHROMIUM is None:
    pytest.skip("there is no Chromium here: apt-get install chromium", allow_module_level=True)


@pytest.fixture(scope="module")
def server(trained: Path) -> Iterator[Server]:
    server = Server.of(trained, "--dropped", "50")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as program:
        browser = program.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """A page on which any console error and any foreign request fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    page = context.new_page()
    address, problems = f"http://127.0.0.1:{server.port}", []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request",
        lambda request: None if request.url.startswith((address, "blob:", "data:")) else problems.append(request.url),
    )
    page.goto(address)
    yield page
    assert [one for one in problems if "422" not in one] == []  # the browser logs a 422, which is meant
    context.close()


@pytest.fixture
def tiles(tmp_path: Path) -> list[Path]:
    return [draw_image(tmp_path / f"tile {number}.png", number, (32, 32)) for number in range(12)]


def drop(page: Any, files: list[Path]) -> None:
    page.set_input_files("#files", [str(file) for file in files])


def answered(page: Any, count: int) -> None:
    page.wait_for_selector(
        f"#status:text-matches('^{count} of {count} images done')"
    )  # a function would need the page's eval


def test_tiles_are_answered_sorted_and_downloaded(page: Any, tiles: list[Path], trained: Path, tmp_path: Path) -> None:
    drop(page, tiles)
    answered(page, 12)
    wanted = {Path(one.file).name: one for one in Predictor(load_model(trained)).predict(tiles)}
    rows = [
        [cell.inner_text() for cell in row.query_selector_all("td")] for row in page.query_selector_all("tr.answer")
    ]
    for _, name, probability, label, novelty, _ in rows:
        assert float(probability) == pytest.approx(wanted[name].probability, abs=1e-4)
        assert label.startswith(wanted[name].label) and float(novelty) == pytest.approx(wanted[name].novelty, abs=0.02)
    page.click("th[data-key=probability] button")
    values = [float(cell.inner_text()) for cell in page.query_selector_all("tr.answer td:nth-child(3)")]
    assert values == sorted(values, reverse=True)
    assert page.get_attribute("th[data-key=probability]", "aria-sort") == "descending"
    with page.expect_download() as download:
        page.click("#csv")
    download.value.save_as(tmp_path / "found.csv")
    with (tmp_path / "found.csv").open(newline="") as stream:
        found = list(csv.DictReader(stream))
    assert len(found) == 12
    for row in found:
        assert float(row["probability"]) == pytest.approx(wanted[row["file"]].probability, abs=1e-6)
    page.click("#clear")
    assert page.inner_text("#status") == "No image yet."


def test_an_evidence_map_opens_beside_its_image(page: Any, tiles: list[Path]) -> None:
    pytest.importorskip("captum")
    drop(page, tiles[:1])
    answered(page, 1)
    page.click("tr.answer button")
    page.wait_for_selector("tr.details img[alt^='Evidence map']")
    assert page.eval_on_selector_all("tr.details img", "all => all.every(one => one.complete && one.naturalWidth > 0)")
    assert "not that the place is malignant" in page.inner_text("tr.details")
    page.click("tr.answer button")
    assert page.query_selector("tr.details") is None


def test_files_can_be_dropped(page: Any, tiles: list[Path]) -> None:
    content = list(tiles[0].read_bytes())
    page.evaluate(
        """(content) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(content)], "dropped.png", {type: "image/png"}));
            document.getElementById("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
        }""",
        content,
    )
    answered(page, 1)
    assert page.inner_text("tr.answer td.name") == "dropped.png"


def test_what_cannot_be_answered_is_said_and_the_page_lives_on(page: Any, tiles: list[Path], tmp_path: Path) -> None:
    (tmp_path / "unreadable.png").write_bytes(b"no image")
    with (tmp_path / "large.png").open("wb") as stream:
        stream.truncate(200_000_000)
    Image.new("1", (40_000, 10_000)).save(tmp_path / "bomb.png")
    (tmp_path / "slide.svs").touch()
    drop(page, [tmp_path / name for name in ("unreadable.png", "bomb.png", "slide.svs")])
    answered(page, 2)
    # Playwright refuses to hand over 200 MB: the browser makes the file itself.
    page.evaluate(
        """() => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(200000000)], "large.png", {type: "image/png"}));
            document.getElementById("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
        }"""
    )
    answered(page, 3)
    told = page.inner_text("#table")
    assert "no image of a known format" in told and "too many pixels" in told and "too large: 200 MB" in told
    assert 'predict.py ckpt=CHECKPOINT img="slide.svs"' in page.inner_text("#messages")
    page.evaluate(
        """() => {
            const data = new DataTransfer();
            for (let i = 0; i < 2000; i++) data.items.add(new File(["x"], `${i}.png`, {type: "image/png"}));
            document.getElementById("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
        }"""
    )
    page.wait_for_selector("#messages p:has-text('2000 images are too many')")
    drop(page, tiles[:1])
    answered(page, 4)


def test_a_folders_other_files_are_named_as_passed_over(page: Any, tiles: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(tiles[0], folder / "one.png")
    (folder / "notes.txt").write_text("x")
    page.set_input_files("#folder", str(folder))
    answered(page, 1)
    assert page.inner_text("tr.answer td.name") == "folder/one.png"
    assert "Passed over, as no images: 1" in page.inner_text("#messages")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1600])
def test_the_page_is_accessible_and_fits(page: Any, tiles: list[Path], scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    drop(page, tiles[:2])
    answered(page, 2)
    page.click("tr.answer button")
    page.wait_for_selector("tr.details")
    found = axe.Axe().run(page).response["violations"]
    assert [(one["id"], one["impact"]) for one in found if one["impact"] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement !== document.body")
