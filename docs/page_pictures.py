"""Pictures of the page that `python -m histo_pl serve` shows, in light and dark, wide and narrow.

python docs/page_pictures.py TILES RUN                        # the demo's: data/demo/..., outputs/DAY/TIME

TILES is a folder of tiles, RUN a training's folder. Writes docs/images/page_*.png. Needs Chromium
(apt-get install chromium)
and pip install -e '.[test]'.
"""

import argparse
import io
import re
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from histo_pl.images import find_files, is_image

IMAGES = Path(__file__).parent / "images"
WIDTHS = (1280, 400)
SCHEMES = ("light", "dark")
OF_EACH_CLASS = 4  # tiles
COLORS = 128  # of a picture


def main() -> None:
    """Start a server, take the pictures, and stop it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tiles", type=Path, metavar="TILES")
    parser.add_argument("run", metavar="RUN")
    options = parser.parse_args()
    folders = sorted(folder for folder in options.tiles.iterdir() if folder.is_dir())
    files = [file for folder in folders for file in islice(filter(is_image, find_files(folder)), OF_EACH_CLASS)]
    program = [sys.executable, "-m", "histo_pl", "serve", options.run, "--port", "0"]
    server = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    lines = [server.stdout.readline(), server.stdout.readline()]
    (address,) = re.findall(r"http://\S+", lines[1])
    try:
        with sync_playwright() as playwright:
            chromium = shutil.which("chromium") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            for width in WIDTHS:
                for scheme in SCHEMES:
                    take_picture(browser, address, files, width, scheme)
    finally:
        server.terminate()
        server.wait()


def take_picture(browser: Browser, address: str, files: list[Path], width: int, scheme: str) -> None:
    """Drop the tiles, sort them, open a map, and write the whole page as a picture."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)  # pyright: ignore[reportArgumentType]
    page = context.new_page()
    page.goto(address)
    page.set_input_files("#files", [str(file) for file in files])
    page.wait_for_selector(f"#status:text-matches('^{len(files)} of')")
    page.evaluate("document.querySelector('th[data-key=probability] button').click()")
    page.click("tr.answer button")
    page.wait_for_selector("tr.details img[alt^='Evidence map']")
    page.wait_for_timeout(300)
    picture = Image.open(io.BytesIO(page.screenshot(full_page=True)))
    picture.quantize(COLORS).save(IMAGES / f"page_{width}_{scheme}.png", optimize=True)
    context.close()


if __name__ == "__main__":
    main()
