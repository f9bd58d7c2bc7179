"""Is the map of a slide true, is it fast, does its memory stay flat, and does a killed run go on?

python docs/benchmarks/slides.py TILES RUN                   # all; about fifteen minutes on 2 cores
python docs/benchmarks/slides.py TILES RUN --sides 10000     # a first look

TILES is the folder of BreakHis tiles (224 pixels), RUN a training on it: its checkpoint is asked, and the tiles of its
test cases (split.csv) are pasted into slides that this program makes: pyramidal TIFFs of white glass with a disc of
pink, stroma-like noise. Needs pip install -e '.[pretrained,slides]'.

True: the AUROC of the pasted tiles, as predict.py answers the files, against the map's value at their places; once
pasted on the grid, once at random offsets (there with overlap=0.5; the value is the map's mean over the place).
Fast: tiles a second of a whole slide against a loop that reads and predicts and does nothing else, in turns.
Flat: the peak of the anonymous memory (RssAnon), the median of some runs of predict.py.
Goes on: killed by SIGKILL half-way, started again, and the files compared.
"""

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import tifffile
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from histo_pl import Predictor, load_model
from histo_pl.images import read_rgb, squeeze_pixels
from histo_pl.inference.slide import ask_slide
from histo_pl.inference.slide_options import SlideOptions
from histo_pl.slides import open_slide
from histo_pl.slides.maps import probability_map
from histo_pl.slides.table import read_answers
from histo_pl.slides.tiling import lay_tiles, read_region, shape_tiles

SIDE = 224  # of a BreakHis tile
CHUNK = 512
GLASS = (244, 243, 245)
STROMA = (226, 176, 200)
ROOT = Path(__file__).parents[2]


class Canvas:
    """A square slide drawn block by block: a disc of noise on glass, with tiles pasted at known places."""

    def __init__(self, side: int, tiles: list[np.ndarray], on_grid: bool) -> None:
        generator = np.random.default_rng(0)
        self.side, self.tiles = side, tiles
        noise = generator.normal(0, 14, (CHUNK, CHUNK, 1)) + generator.normal(0, 3, (CHUNK, CHUNK, 3))
        self.stroma = np.clip(np.array(STROMA) + noise, 0, 255).astype(np.uint8)
        self.glass = np.full((CHUNK, CHUNK, 3), GLASS, np.uint8)
        cells = self._cells_on_disc()
        chosen = cells[generator.permutation(len(cells))[: len(tiles)]]
        shift = 0 if on_grid else generator.integers(0, SIDE, (len(tiles), 2))
        self.places = chosen * 2 * SIDE + shift  # every other cell, so that shifted tiles do not touch

    def _cells_on_disc(self) -> np.ndarray:
        count = self.side // (2 * SIDE) - 1
        cells = np.stack(np.meshgrid(np.arange(count), np.arange(count)), -1).reshape(-1, 2)
        distance = np.linalg.norm((cells + 0.5) * 2 * SIDE - self.side / 2, axis=1)
        return cells[distance < self.radius - 2 * SIDE]

    @property
    def radius(self) -> float:
        """Of the disc, in pixels."""
        return 0.28 * self.side

    def block(self, left: int, top: int) -> np.ndarray:
        """Draw the block of CHUNK pixels at a place."""
        y, x = np.ogrid[top : top + CHUNK, left : left + CHUNK]
        inside = (x - self.side / 2) ** 2 + (y - self.side / 2) ** 2 < self.radius**2
        block = np.where(inside[..., None], self.stroma, self.glass)
        near = ((self.places > np.array([left, top]) - SIDE) & (self.places < np.array([left, top]) + CHUNK)).all(1)
        for index in np.flatnonzero(near):
            x0, y0 = self.places[index] - (left, top)
            columns = slice(max(0, x0), min(CHUNK, x0 + SIDE))
            rows = slice(max(0, y0), min(CHUNK, y0 + SIDE))
            block[rows, columns] = self.tiles[index][
                rows.start - y0 : rows.stop - y0, columns.start - x0 : columns.stop - x0
            ]
        return block

    def write(self, file: Path) -> None:
        """Write the slide as a pyramid of three levels, each four times smaller than the one before."""
        with tifffile.TiffWriter(file, bigtiff=True) as writer:
            for factor in (1, 4, 16):
                side = -(-self.side // factor)
                writer.write(
                    self._level(factor, side),
                    shape=(side, side, 3),
                    dtype=np.uint8,
                    photometric="rgb",
                    tile=(CHUNK, CHUNK),
                    compression="deflate",
                    compressionargs={"level": 1},
                    subfiletype=int(factor > 1),
                    metadata=None,
                )

    def _level(self, factor: int, side: int) -> Iterator[np.ndarray]:
        for row in range(-(-side // CHUNK)):
            for column in range(-(-side // CHUNK)):
                yield self._reduced(column * CHUNK * factor, row * CHUNK * factor, factor)

    def _reduced(self, left: int, top: int, factor: int) -> np.ndarray:
        if factor == 1:
            return self.block(left, top)
        small = np.empty((CHUNK, CHUNK, 3), np.uint8)
        part = CHUNK // factor
        for row in range(factor):
            for column in range(factor):
                x, y = left + column * CHUNK, top + row * CHUNK
                block = self.block(x, y) if x < self.side and y < self.side else self.glass
                reduced = Image.fromarray(block).reduce(factor)
                small[row * part : (row + 1) * part, column * part : (column + 1) * part] = np.asarray(reduced)
        return small


def held_out(tiles: Path, run: Path) -> tuple[list[Path], np.ndarray]:
    """List the run's test tiles, and which of them are malignant."""
    with (run / "split.csv").open(newline="") as stream:
        paths = [row["path"] for row in csv.DictReader(stream) if row["split"] == "test"]
    return [tiles / path for path in paths], np.array(["malignant" in path for path in paths])


def check_truth(run: Path, files: list[Path], malignant: np.ndarray, folder: Path) -> None:
    """Compare the map's AUROC with that of the files."""
    predictor = Predictor(load_model(run))
    alone = np.array([answer.probability for answer in predictor.predict(files)])
    wanted = roc_auc_score(malignant, alone)
    print(f"{malignant.sum()} malignant and {(~malignant).sum()} benign tiles; as files AUROC {wanted:.4f}")
    pixels = [read_rgb(file) for file in files]
    for name, on_grid, overlap in (("on the grid", True, 0.0), ("at random offsets", False, 0.5)):
        canvas = Canvas(20_000, pixels, on_grid)
        file = folder / f"truth_{on_grid}.tiff"
        canvas.write(file)
        ask_slide(predictor, file, folder / name, name, SlideOptions.of(tile=SIDE, overlap=overlap))
        answers = read_answers(folder / name / "tiles.csv")
        shape = (canvas.side // 28, canvas.side // 28)  # eight pixels a tile's side
        mean, _ = probability_map(shape, answers, (canvas.side, canvas.side))
        scale = shape[0] / canvas.side
        at = [
            np.nanmean(mean[round(y * scale) : round((y + SIDE) * scale), round(x * scale) : round((x + SIDE) * scale)])
            for x, y in canvas.places
        ]
        found = roc_auc_score(malignant, at)
        largest = f", largest difference of a probability {np.abs(at - alone).max():.6f}" if on_grid else ""
        print(f"20,000 pixels, {name}: AUROC {found:.4f} ({found - wanted:+.4f}){largest}")


def check_speed(run: Path, slide_file: Path, folder: Path, rounds: int) -> None:
    """Time whole slides against a loop that reads and predicts, in turns."""
    predictor = Predictor(load_model(run))
    options = SlideOptions.of(tile=SIDE)
    rates: dict[str, list[float]] = {"slide": [], "loop": []}
    for number in range(rounds):
        with closing(open_slide(slide_file)) as slide:
            tiling = lay_tiles(slide, shape_tiles(slide, SIDE, (SIDE, SIDE)), 0)
            places = list(zip(tiling.x.tolist(), tiling.y.tolist(), strict=True))
            started = time.perf_counter()
            for start in range(0, len(places), predictor.batch_size):
                batch = [
                    read_region(slide, tiling.shape, *place) for place in places[start : start + predictor.batch_size]
                ]
                predictor.answers(torch.stack([squeeze_pixels(one, predictor.model.image_size) for one in batch]))
            rates["loop"].append(len(places) / (time.perf_counter() - started))
        started = time.perf_counter()
        summary = ask_slide(predictor, slide_file, folder / f"speed{number}", "speed", options)
        rates["slide"].append(summary["tiles"] / (time.perf_counter() - started))
    ratios = np.array(rates["slide"]) / np.array(rates["loop"])
    print(
        f"{len(places)} tiles of {slide_file.name}: {np.median(rates['slide']):.1f} tiles a second with thumbnail, "
        f"tissue, tables and maps, a bare loop {np.median(rates['loop']):.1f}: {np.median(ratios):.0%} "
        f"({ratios.min():.0%} to {ratios.max():.0%} in {rounds} rounds)"
    )


def predict_command(run: Path, slide: Path, out: Path) -> list[str]:
    """Return the command line of predict.py."""
    return [sys.executable, str(ROOT / "predict.py"), f"ckpt={run}", f"img={slide}", f"tile={SIDE}", f"out={out}"]


def peak_memory(command: list[str]) -> float:
    """Run a command, and return the peak of its anonymous memory in MiB."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0.0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            anonymous = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")]
            peak = max(peak, int(anonymous[0]) / 1024 if anonymous else 0)
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    watcher.join()
    if process.wait() != 0:
        raise SystemExit(f"predict.py failed: {' '.join(command)}")
    return peak


def check_memory(run: Path, side: int, slide: Path, folder: Path, rounds: int) -> None:
    """Print the peak of the memory of predict.py."""
    peaks = []
    started = time.perf_counter()
    for number in range(rounds):
        out = folder / f"out{side}" if number == 0 else folder / f"out{side}_{number}"
        peaks.append(peak_memory(predict_command(run, slide, out)))
    seconds = (time.perf_counter() - started) / rounds
    print(
        f"{side:,} pixels a side: peak of anonymous memory {np.median(peaks):.0f} MiB ({min(peaks):.0f} to "
        f"{max(peaks):.0f} in {rounds} runs), {seconds:.0f} s a run"
    )


def check_resume(run: Path, slide: Path, folder: Path, finished: Path) -> None:
    """Kill a run half-way, start it again, and compare its tables with those of one that was not stopped."""
    out = folder / "killed"
    command = predict_command(run, slide, out)
    whole = finished / slide.stem
    half = json.loads((whole / "summary.json").read_text())["tiles"] // 2
    unfinished = out / slide.stem / "tiles.unfinished.csv"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not unfinished.exists() or unfinished.read_bytes().count(b"\n") <= half:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    rows = unfinished.read_bytes().count(b"\n") - 1
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    names = ("tiles.csv", "summary.json", "tiles.geojson", "map.png", "map.tiff")
    same = [(out / slide.stem / name).read_bytes() == (whole / name).read_bytes() for name in names]
    print(f"killed after {rows} of {2 * half} tiles and started again: {sum(same)} of {len(same)} files are identical")


def main() -> None:
    """Run all checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tiles", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--sides", type=int, nargs="+", default=[10_000, 20_000, 40_000])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    files, malignant = held_out(options.tiles, options.run)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        check_truth(options.run, files, malignant, folder)
        slides = []
        for side in options.sides:
            slides.append(folder / f"{side}.tiff")
            Canvas(side, [read_rgb(file) for file in files], True).write(slides[-1])
        check_speed(options.run, slides[0], folder, options.rounds)
        for side, slide in zip(options.sides, slides, strict=True):
            check_memory(options.run, side, slide, folder, options.rounds)
        check_resume(options.run, slides[0], folder, folder / f"out{options.sides[0]}")


if __name__ == "__main__":
    main()
