"""Measure `find_near_duplicates` on tiles whose copies are known.

python docs/audit_copies.py FOLDER   (BreakHis tiles; the copies are made in a temporary folder)
"""

import argparse
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from threading import Event, Thread
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from histo_pl.audit.near_duplicates import DEFAULTS, find_near_duplicates, group
from histo_pl.images import find_files, is_image, read_rgb

CASE = r"SOB_[BM]_[A-Z]+-(\d+-\d+)"
SETS = ("cases developed on", "cases held out", "all cases")
ZOOMED, SHIFTED = 0.7, 0.3  # shares of the copies
FILLS = {
    "replicate": (cv2.BORDER_REPLICATE, 0),
    "reflect": (cv2.BORDER_REFLECT, 0),
    "black": (cv2.BORDER_CONSTANT, 0),
    "white": (cv2.BORDER_CONSTANT, 255),
}
Image8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Recipe:
    """How a copy is made.

    Attributes:
        fill: What lies beyond the image's edge, or crop: the copy is cut out of the inside.
        angle: Of the turn, in degrees.
        shear: In degrees.
        zoom: Across and down; above 1 enlarges.
        shift: Across and down, as a share of the side.
        flip: Across and down, each 1 or -1.
        side: Of the copy, as a share of the image's.
        contrast: Factor.
        brightness: Factor.
        quality: Of the JPEG.
    """

    fill: str
    angle: float
    shear: float
    zoom: tuple[float, float]
    shift: tuple[float, float]
    flip: tuple[int, int]
    side: float
    contrast: float
    brightness: float
    quality: int

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Recipe":
        """Draw the kind of copy that the notebook's authors made."""
        turn = rng.choice(["none", "small", "any"], p=[0.2, 0.4, 0.4])
        fill = "crop" if turn == "small" else str(rng.choice([*FILLS, "crop"] if turn == "any" else list(FILLS)))

        def perhaps(chance: float, low: float, high: float, otherwise: float) -> float:
            drawn = rng.uniform(low, high)
            return drawn if rng.random() < chance else otherwise

        zoom, shift = rng.random() < ZOOMED, rng.random() < SHIFTED
        return cls(
            fill=fill,
            angle={"none": 0.0, "small": rng.uniform(-25, 25), "any": rng.uniform(-180, 180)}[turn],
            shear=perhaps(0.5, -10, 10, 0),
            zoom=tuple(np.exp(rng.uniform(np.log(0.8), np.log(1.25), 2)) if zoom else np.ones(2)),
            shift=tuple(rng.uniform(-0.08, 0.08, 2) if shift else np.zeros(2)),
            flip=tuple(int(sign) for sign in rng.choice([-1, 1], 2)),
            side=perhaps(0.5, 0.75, 1.25, 1),
            contrast=perhaps(0.5, 0.7, 1.3, 1),
            brightness=perhaps(0.5, 0.7, 1.3, 1),
            quality=int(rng.integers(60, 96)),
        )

    def linear(self) -> NDArray[np.float64]:
        """Where a place in the copy looks in the image, both centred, (2, 2)."""
        angle = np.radians(self.angle)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        shear = np.array([[1, np.tan(np.radians(self.shear))], [0, 1]])
        matrix = turn @ shear @ np.diag(np.array(self.flip) / np.array(self.zoom))
        if self.fill == "crop":
            room = np.maximum(1 - 2 * np.abs(self.shift), 0.1)
            matrix /= max(1.0, float((np.abs(matrix).sum(1) / room).max()))
        return matrix

    def apply(self, image: Image8) -> Image8:
        """Make the copy, before its compression."""
        height, width = image.shape[:2]
        new_width, new_height = round(self.side * width), round(self.side * height)
        scale = np.diag((width, height)).astype(float)
        back = scale @ self.linear() @ np.linalg.inv(np.diag((new_width, new_height)).astype(float))
        centre = scale @ (0.5 + np.array(self.shift)) - 0.5
        offset = centre - back @ (np.array((new_width, new_height)) / 2 - 0.5)
        mode, value = FILLS.get(self.fill, (cv2.BORDER_REPLICATE, 0))
        copy = cv2.warpAffine(
            image,
            np.column_stack((back, offset)),
            (new_width, new_height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=mode,
            borderValue=(value,) * 3,
        ).astype(np.float32)
        copy = (copy - copy.mean()) * self.contrast + copy.mean() * self.brightness
        return np.clip(np.round(copy), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Known:
    """A set of files with the truth about it.

    Attributes:
        files: Tiles and copies.
        sources: The index of the image that each shows.
        origins: The tile that this image is, or is a part of.
        recipes: How each was made, None for a source.
    """

    files: list[Path]
    sources: list[int]
    origins: list[Path]
    recipes: list[Recipe | None]

    def true_pairs(self) -> set[tuple[int, int]]:
        """Every two files of one source."""
        return connected(self.sources)


@dataclass(frozen=True)
class Job:
    """One tile to write copies of.

    Attributes:
        tile: The file.
        quarters: Which quarters of it to take as sources; none for the tile itself.
        folder: Where to write.
        most: Copies of a source.
        side: Of the sources, None for the tile's own.
        seed: Any integer.
    """

    tile: Path
    quarters: tuple[int, ...]
    folder: Path
    most: int
    side: int | None
    seed: int


def write_tile(job: Job) -> list[list[tuple[Path, Recipe | None]]]:
    """Write the copies of one tile, or of its quarters, and of these also the sources."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng(job.seed)
    image = read_rgb(job.tile)
    if not job.quarters:
        return [[(job.tile, None), *write_copies(image, job, job.tile.stem, rng)]]
    written = []
    half = image.shape[0] // 2
    for quarter in job.quarters:
        down, across = (half * place for place in divmod(quarter, 2))
        part = np.ascontiguousarray(image[down : down + half, across : across + half])
        part = cv2.resize(part, (job.side, job.side), interpolation=cv2.INTER_LANCZOS4)
        file = job.folder / f"{job.tile.stem}_part{quarter}.jpg"
        Image.fromarray(part).save(file, quality=90)
        written.append([(file, None), *write_copies(part, job, file.stem, rng)])
    return written


def write_copies(image: Image8, job: Job, stem: str, rng: np.random.Generator) -> Iterator[tuple[Path, Recipe]]:
    """Write some copies of one image."""
    for number in range(rng.integers(1, job.most + 1)) if job.most else ():
        recipe = Recipe.draw(rng)
        copy = recipe.apply(image)
        if job.quarters:
            copy = cv2.resize(copy, (job.side, job.side), interpolation=cv2.INTER_LINEAR)
        file = job.folder / f"{stem}_copy{number}.jpg"
        Image.fromarray(copy).save(file, quality=recipe.quality)
        yield file, recipe


def make_set(tiles: Sequence[Path], folder: Path, most: int, seed: int, parts: int = 0, side: int = 512) -> Known:
    """Write copies of tiles, or of as many of their quarters as asked for."""
    rng = np.random.default_rng(seed)
    quarters: list[tuple[int, ...]] = [()] * len(tiles)
    for number in rng.permutation(4 * len(tiles))[:parts]:
        quarters[number // 4] += (int(number % 4),)
    seeds = np.random.SeedSequence(seed).generate_state(len(tiles))
    jobs = [
        Job(tile, some, folder, most, side, int(own))
        for tile, some, own in zip(tiles, quarters, seeds, strict=True)
        if some or not parts
    ]
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:  # forking would copy OpenCV's locks
        written = list(pool.map(write_tile, jobs, chunksize=8))
    shown = [(some, job.tile) for job, images in zip(jobs, written, strict=True) for some in images]
    rows = [(*entry, source, tile) for source, (some, tile) in enumerate(shown) for entry in some]
    files, recipes, sources, origins = map(list, zip(*rows, strict=True))
    return Known(files, sources, origins, recipes)


def connected(groups: Sequence[int]) -> set[tuple[int, int]]:
    """Every two members of a group."""
    members = defaultdict(list)
    for index, name in enumerate(groups):
        members[name].append(index)
    return {pair for some in members.values() for pair in combinations(some, 2)}


def case_of(file: Path) -> str:
    """Read the case out of a file's name."""
    return re.search(CASE, file.name)[1]


def score(name: str, found: set[tuple[int, int]], known: Known, overlapping: set[frozenset[Path]]) -> None:
    """Print recall and precision.

    Precision is given twice: over all pairs, and without those of two tiles that overlap in the data set itself (or
    two quarters of one tile).
    """
    true = known.true_pairs()
    false = found - true
    excused = {pair for pair in false if frozenset(known.origins[i] for i in pair) in overlapping}
    excused |= {(a, b) for a, b in false if known.origins[a] == known.origins[b]}
    crossing = sum(case_of(known.files[a]) != case_of(known.files[b]) for a, b in false)
    hits = len(found & true)
    print(
        f"{name}: {len(found)} pairs, {len(true)} true, recall {hits / len(true):.4f}, precision "
        f"{hits / max(1, len(found)):.4f} ({hits / max(1, len(found) - len(excused)):.4f} without tiles that overlap), "
        f"{len(false) - len(excused)} false without excuse, {crossing} between cases",
        flush=True,
    )
    for a, b in sorted(false - excused)[:10]:
        print(f"    false: {known.files[a].name} {known.files[b].name}")


def list_misses(found: set[tuple[int, int]], known: Known) -> None:
    """Print the recall for each pair of kinds of copies."""
    counts = defaultdict(lambda: [0, 0])
    for pair in sorted(known.true_pairs()):
        kinds = " ".join(sorted(r.fill if (r := known.recipes[i]) else "source" for i in pair))
        counts[kinds][0] += pair in found
        counts[kinds][1] += 1
    print("   ", ", ".join(f"{kinds} {hits}/{all_}" for kinds, (hits, all_) in sorted(counts.items())))


def measure(name: str, known: Known, overlapping: set[frozenset[Path]]) -> None:
    """Search one set and print what was found."""
    start, work = time.perf_counter(), time.process_time()
    with Memory() as memory:
        pairs = find_near_duplicates(known.files, stages)
    wall, work = time.perf_counter() - start, time.process_time() - work
    print(f"{name}: {len(known.files)} files, {wall:.0f} s ({work:.0f} s of processor), {memory.peak:.2f} GiB at most")
    found = {(pair.first, pair.second) for pair in pairs}
    score(name, found, known, overlapping)
    score(f"{name}, in groups", connected(group(pairs, len(known.files))), known, overlapping)
    list_misses(found, known)


def stages(steps: Iterable[Any], count: int) -> Iterator[Any]:
    """Say how long each loop takes."""
    print(f"    at {time.strftime('%H:%M:%S')}: {count} steps", flush=True)
    yield from steps
    print(f"    at {time.strftime('%H:%M:%S')}: done", flush=True)


class Memory:
    """Watches the private memory of this process, which starts no others while it searches; Linux only."""

    def __enter__(self) -> "Memory":
        """Begin."""
        self.peak = 0.0
        self._done = Event()
        self._thread = Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            kilobytes = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
            self.peak = max(self.peak, int(kilobytes[1]) / 2**20)


def find_overlapping(tiles: Sequence[Path]) -> set[frozenset[Path]]:
    """Print the pairs among untouched tiles, and return them with those that overlap less."""
    pairs = find_near_duplicates(tiles, settings=replace(DEFAULTS, overlap=0.1, inliers=6))
    for pair in sorted(pairs, key=lambda pair: -pair.overlap):
        names = [tiles[i].stem for i in (pair.first, pair.second)]
        other = "" if len({case_of(tiles[i]) for i in (pair.first, pair.second)}) == 1 else " BETWEEN CASES"
        print(f"    {' '.join(names)} {pair.inliers} {pair.overlap:.2f} {pair.agreement:.2f}{other}")
    return {frozenset((tiles[pair.first], tiles[pair.second])) for pair in pairs}


def keep_apart(tiles: Sequence[Path], overlapping: set[frozenset[Path]]) -> list[Path]:
    """Leave out each tile that overlaps with one already kept, so that what is a copy is beyond doubt."""
    kept: list[Path] = []
    for tile in tiles:
        if not any(frozenset((tile, other)) in overlapping for other in kept):
            kept.append(tile)
    return kept


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="BreakHis tiles")
    parser.add_argument("--copies", type=int, default=4, help="of each tile at most (default 4)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", type=int, default=0, help="take so many quarters of tiles, enlarged to 512x512")
    parser.add_argument("--apart", action="store_true", help="leave out one of two tiles whose fields overlap")
    options = parser.parse_args()
    tiles = [file for file in find_files(options.folder) if is_image(file)]
    cases = sorted({case_of(tile) for tile in tiles})
    develop = {cases[i] for i in np.random.default_rng(options.seed).permutation(len(cases))[: len(cases) // 2]}
    halves = [[tile for tile in tiles if (case_of(tile) in develop) == first] for first in (True, False)]
    overlapping = find_overlapping(tiles)
    sets = {"parts": tiles} if options.parts else dict(zip(SETS, (*halves, tiles), strict=True))
    for name, some in sets.items():
        chosen = keep_apart(some, overlapping) if options.apart else some
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            known = make_set(chosen, Path(folder), options.copies, options.seed, options.parts)
            measure(name, known, overlapping)


if __name__ == "__main__":
    main()
