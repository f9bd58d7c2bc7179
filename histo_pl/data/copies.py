"""Which tiles are altered copies of one image: flipped, turned, zoomed, sheared, recompressed, brightened.

Each tile becomes some 150 SIFT keypoints. Tiles with telling visual words in common are compared: a pair counts if
an affine map carries the keypoints of one onto their matches in the other and the pixels agree under that map. A
mirrored tile's descriptors are those of the tile in another order, so that flips cost no second look at the image.
"""

import importlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from histo_pl.errors import UserError
from histo_pl.images import read_rgb

Array = NDArray[Any]
Progress = Callable[[Iterable[Any], int], Iterable[Any]]
Proposals = dict[tuple[int, bool], list[int]]  # by a tile and whether it is mirrored: later tiles to compare it with

SEED = 0
THUMBNAIL = 96
LENGTH = 128  # of a descriptor: 4 cells down, 4 across, 8 directions
MIRROR = np.arange(LENGTH).reshape(4, 4, 8)[::-1][:, :, -np.arange(8)].ravel()


@dataclass(frozen=True)
class Pair:
    """Two files that show one image.

    Attributes:
        first: Index of one file.
        second: Index of the other, larger than `first`.
        inliers: How many keypoints the map carries onto their matches.
        overlap: Share of the smaller tile, as the map sees it, that lies on the other.
        agreement: Share of the overlap, blank places aside, where the pixels agree.
    """

    first: int
    second: int
    inliers: int
    overlap: float
    agreement: float


@dataclass(frozen=True)
class Settings:
    """What the search trades. `docs/audit_copies.py` measures it.

    Attributes:
        side: Longer side in pixels at which keypoints are sought.
        keypoints: The strongest ones of each tile that are kept.
        words: Size of the vocabulary.
        candidates: How many tiles each tile is compared with, and as many again with its mirror image.
        ratio: How far a match must be from its keypoint at most, squared, as a share of the second best.
        inliers: Keypoints that must follow the map.
        tolerance: How far a carried keypoint may land from its match, as a share of the longer side.
        overlap: Least `Pair.overlap`. Neighbouring fields of one slide reach 0.7, copies seldom fall below 0.8.
        correlation: Of the pixels around a place, from which on they agree.
        agreement: Least `Pair.agreement`.
    """

    side: int = 192
    keypoints: int = 150
    words: int = 8192
    candidates: int = 15
    ratio: float = 0.8
    inliers: int = 8
    tolerance: float = 0.025
    overlap: float = 0.7
    correlation: float = 0.5
    agreement: float = 0.5


DEFAULTS = Settings()


@dataclass(frozen=True)
class Features:
    """What is kept of the tiles: arrays with one row a tile.

    Lengths are shares of the tile's longer side.

    Attributes:
        counts: Number of keypoints.
        frames: Each keypoint's x, y, size and direction in radians.
        descriptors: RootSIFT of length 255, zero beyond the last keypoint.
        thumbnails: Gray, in the upper left of a square of side `THUMBNAIL`.
        extents: Width and height of the thumbnail.
    """

    counts: Array
    frames: Array
    descriptors: Array
    thumbnails: Array
    extents: Array

    @classmethod
    def empty(cls, tiles: int, keypoints: int) -> "Features":
        """Make room."""
        return cls(
            np.zeros(tiles, np.int32),
            np.zeros((tiles, keypoints, 4), np.float32),
            np.zeros((tiles, keypoints, LENGTH), np.uint8),
            np.zeros((tiles, THUMBNAIL, THUMBNAIL), np.uint8),
            np.zeros((tiles, 2), np.int32),
        )

    def known(self, start: int = 0, stop: int | None = None) -> Array:
        """Where some tiles have a keypoint, (tiles, keypoints)."""
        return np.arange(self.frames.shape[1]) < self.counts[start:stop, None]


def find_copies(
    files: Sequence[Path], progress: Progress = lambda steps, _: steps, settings: Settings = DEFAULTS
) -> list[Pair]:
    """Find the pairs of tiles that are altered copies of one image.

    A tile that has hardly a keypoint, being blank or very smooth, is found to be a copy of nothing, not even of a
    file with the same bytes.

    Args:
        files: The tiles.
        progress: Wraps a loop, given its length. There are two: over the files, and over the comparisons.
        settings: What the search trades.

    Returns:
        The pairs in order, the same in every run on one machine. Of many copies of one image not every two need be
        among them, but there is a chain of pairs from each to each.

    Raises:
        ImageError: A file cannot be read.
        UserError: OpenCV is not installed.
    """
    _opencv()  # before any work
    features = describe(files, progress, settings)
    proposals = propose(features, settings)
    best: dict[tuple[int, int], Pair] = {}
    with _one_thread_a_product(), ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(
            lambda item: list(_compare(features, item[0][0], item[0][1], item[1], settings)), proposals.items()
        )
        for pairs in progress(found, len(proposals)):
            best |= {(pair.first, pair.second): pair for pair in pairs}
    return [best[key] for key in sorted(best)]


def _opencv() -> Any:  # noqa: ANN401
    """Import the optional OpenCV, whose own threads would get in the way of ours."""
    try:
        opencv = importlib.import_module("cv2")
    except ImportError as error:
        raise UserError(
            f"Altered copies are found with OpenCV, which is not installed. Mend: pip install -e '.[audit]', or look "
            f"for exact copies alone with --exact-only. Received: {error}"
        ) from error
    opencv.setNumThreads(1)
    return opencv


@contextmanager
def _one_thread_a_product() -> Iterator[None]:
    """Keep small matrix products to the thread that asks for them: sharing one out costs more than it saves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _multiply(left: Array, right: Array) -> Array:
    """Return left @ right.T, by PyTorch: NumPy's number of threads cannot be set."""
    return (torch.from_numpy(left) @ torch.from_numpy(right).T).numpy()


def describe(files: Sequence[Path], progress: Progress, settings: Settings) -> Features:
    """Read the tiles and find their keypoints."""
    features = Features.empty(len(files), settings.keypoints)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        described = pool.map(partial(_describe, settings=settings), files)
        for row, (frames, descriptors, thumbnail) in enumerate(progress(described, len(files))):
            height, width = thumbnail.shape
            features.counts[row] = len(frames)
            features.frames[row, : len(frames)] = frames
            features.descriptors[row, : len(frames)] = descriptors
            features.thumbnails[row, :height, :width] = thumbnail
            features.extents[row] = width, height
    return features


def _describe(file: Path, settings: Settings) -> tuple[Array, Array, Array]:
    cv2 = _opencv()

    gray = cv2.cvtColor(read_rgb(file), cv2.COLOR_RGB2GRAY)
    thumbnail, picture = _shrink(gray, THUMBNAIL), _shrink(gray, settings.side)
    sift = cv2.SIFT_create(nfeatures=settings.keypoints, contrastThreshold=0.02)
    keypoints, descriptors = sift.detectAndCompute(picture, None)
    if descriptors is None:
        return np.zeros((0, 4)), np.zeros((0, LENGTH)), thumbnail
    frames = np.array([(*point.pt, point.size, np.radians(point.angle)) for point in keypoints])
    frames[:, :2] += 0.5
    frames[:, :2] *= np.array(thumbnail.shape[::-1]) / picture.shape[::-1] / THUMBNAIL
    frames[:, 2] /= settings.side
    root = np.sqrt(descriptors / np.maximum(descriptors.sum(1, keepdims=True), 1))
    few = slice(settings.keypoints)  # OpenCV may return one more
    return frames[few], np.round(255 * root[few]), thumbnail


def _shrink(gray: Array, side: int) -> Array:
    cv2 = _opencv()

    scale = side / max(gray.shape)
    height, width = (max(1, round(scale * length)) for length in gray.shape)
    return cv2.resize(gray, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def propose(features: Features, settings: Settings) -> Proposals:
    """Choose the pairs worth a comparison: all of few tiles, else those with the most telling words in common."""
    tiles = len(features.counts)
    chosen: defaultdict[tuple[int, bool], set[int]] = defaultdict(set)
    if tiles - 1 <= settings.candidates:
        for first in range(tiles - 1):
            chosen[first, False] = chosen[first, True] = set(range(first + 1, tiles))
    else:
        vocabulary = _learn_words(features, settings)
        bags = Bags(_find_words(features, vocabulary), len(vocabulary))
        for tile, mirrored, nearest in bags.nearest(settings.candidates):
            for other in nearest:
                chosen[min(tile, other), mirrored].add(max(tile, other))
    return {key: sorted(others) for key, others in sorted(chosen.items())}


def _learn_words(features: Features, settings: Settings, rounds: int = 4, sample: int = 60_000) -> Array:
    """Cluster a sample of the descriptors. The second half of the words mirror those of the first, in order."""
    rng = np.random.default_rng(SEED)
    tiles, places = np.nonzero(features.known())
    chosen = np.sort(rng.permutation(len(tiles))[:sample])
    points = features.descriptors[tiles[chosen], places[chosen]].astype(np.float32) / 255
    size = min(settings.words // 2, len(points) // 10)
    words = points[np.sort(rng.permutation(len(points))[:size])]
    for _ in range(rounds if size else 0):
        nearest = _nearest_word(points, words)
        order = np.argsort(nearest, kind="stable")
        used, starts = np.unique(nearest[order], return_index=True)
        sums = np.add.reduceat(points[order], starts)
        words[used] = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return np.concatenate((words, words[:, MIRROR]))


def _nearest_word(points: Array, words: Array, block: int = 4096) -> Array:
    blocks = (points[start : start + block] for start in range(0, len(points), block))
    return np.concatenate([_multiply(part, words).argmax(1) for part in blocks])


def _find_words(features: Features, vocabulary: Array, block: int = 64) -> Array:
    """The word of each keypoint, -1 beyond the last, (tiles, keypoints)."""
    words = np.full(features.frames.shape[:2], -1, np.int32)
    for start in range(0, len(words), block) if len(vocabulary) else ():
        part = slice(start, start + block)
        known = features.known(start, start + block)
        if known.any():
            words[part][known] = _nearest_word(features.descriptors[part][known].astype(np.float32), vocabulary)
    return words


class Bags:
    """Tiles as bags of words, weighted by how rare a word is.

    Args:
        words: As `_find_words` returns them.
        size: Of the vocabulary, whose second half mirrors the first.
    """

    def __init__(self, words: Array, size: int) -> None:
        self.words = words
        self.size = size
        tiles, places = np.nonzero(words >= 0)
        keys = np.unique(tiles.astype(np.int64) * max(size, 1) + words[tiles, places])
        holders = np.bincount(keys % max(size, 1), minlength=size)
        holders = holders + self._mirror(holders)
        self.weights = np.log(2 * len(words) / np.maximum(holders, 1)).astype(np.float32)

    def _mirror(self, bags: Array) -> Array:
        return np.roll(bags, self.size // 2, axis=-1)

    def vectors(self, start: int, stop: int) -> Array:
        """Some tiles' bags, of length one."""
        part = self.words[start:stop]
        tiles, places = np.nonzero(part >= 0)
        counts = np.bincount(tiles * self.size + part[tiles, places], minlength=len(part) * self.size)
        bags = np.sqrt(counts.reshape(len(part), self.size), dtype=np.float32) * self.weights
        return bags / np.maximum(np.linalg.norm(bags, axis=1, keepdims=True), 1e-6)

    def nearest(self, count: int, block: int = 512) -> Iterator[tuple[int, bool, list[int]]]:
        """Yield each tile, plain and mirrored, with the tiles most similar to it."""
        tiles = len(self.words)
        for start in range(0, tiles, block):
            plain = self.vectors(start, start + block)
            queries = np.concatenate((plain, self._mirror(plain)))
            similar = np.concatenate(
                [_multiply(queries, self.vectors(other, other + block)) for other in range(0, tiles, block)], axis=1
            )
            own = start + np.arange(len(queries)) % len(plain)
            similar[np.arange(len(queries)), own] = 0
            for row, best in enumerate(np.argpartition(similar, -count, axis=1)[:, -count:]):
                yield int(own[row]), row >= len(plain), [int(tile) for tile in best if similar[row, tile] > 0]


def _compare(
    features: Features, first: int, mirrored: bool, others: Sequence[int], settings: Settings
) -> Iterator[Pair]:
    """Yield the copies of one tile, or of its mirror image, among some others."""
    count = features.counts[first]
    if count < settings.inliers:
        return
    frames, descriptors, mask, thumbnail = _view(features, first, mirrored)
    there = features.descriptors[others].astype(np.float32)
    similar = _multiply(descriptors, there.reshape(-1, LENGTH)).reshape(count, len(others), -1) / 255**2
    for column, second in enumerate(others):
        here, matched = _match(similar[:, column, : features.counts[second]], settings)
        if len(here) < settings.inliers:
            continue
        matrix, inliers = _fit_affine(frames[here], features.frames[second, matched], settings)
        if inliers < settings.inliers or not _is_plausible(matrix):
            continue
        other = features.thumbnails[second], _mask(features.extents[second])
        overlap, agreement = _lay_over((thumbnail, mask), other, matrix, settings)
        if overlap >= settings.overlap and agreement >= settings.agreement:
            yield Pair(first, second, inliers, overlap, agreement)


def _view(features: Features, tile: int, mirrored: bool) -> tuple[Array, Array, Array, Array]:
    """A tile's frames, descriptors, and where its thumbnail has pixels, and these."""
    count, width = features.counts[tile], features.extents[tile, 0]
    frames = features.frames[tile, :count]
    descriptors = features.descriptors[tile, :count].astype(np.float32)
    thumbnail = features.thumbnails[tile]
    if mirrored:
        frames = frames * np.array((-1, 1, 1, -1), np.float32) + np.array((width / THUMBNAIL, 0, 0, np.pi), np.float32)
        descriptors = np.ascontiguousarray(descriptors[:, MIRROR])
        thumbnail = np.concatenate((thumbnail[:, :width][:, ::-1], thumbnail[:, width:]), axis=1)
    return frames, descriptors, _mask(features.extents[tile]), thumbnail


def _mask(extent: Array) -> Array:
    mask = np.zeros((THUMBNAIL, THUMBNAIL), np.uint8)
    mask[: extent[1], : extent[0]] = 1
    return mask


def _match(similar: Array, settings: Settings) -> tuple[Array, Array]:
    """Choose keypoints that are each other's nearest, by far."""
    if similar.shape[1] < settings.inliers:
        return np.zeros(0, int), np.zeros(0, int)
    best = similar.argmax(1)
    rows = np.flatnonzero(similar.argmax(0)[best] == np.arange(len(similar)))
    best = best[rows]
    second, first = np.partition(similar[rows], -2, axis=1)[:, -2:].T
    clear = 1 - first < settings.ratio * (1 - second)
    return rows[clear], best[clear]


def _fit_affine(here: Array, there: Array, settings: Settings, rounds: int = 4) -> tuple[Array, int]:
    """Find the affine map, (2, 3), that most matches follow, and count the places that do."""
    inside = _agree_on_similarity(here, there)
    matrix = np.zeros((2, 3))
    start, goal = np.column_stack((here[:, :2], np.ones(len(here)))), there[:, :2]
    for step in range(rounds):
        if inside.sum() < settings.inliers:
            return matrix, 0
        matrix = np.linalg.lstsq(start[inside], goal[inside], rcond=None)[0].T
        off = np.linalg.norm(start @ matrix.T - goal, axis=1)
        inside = off < settings.tolerance * (1 if step else 2)
    return matrix, min(_count_places(frames[inside, :2]) for frames in (here, there))


def _agree_on_similarity(here: Array, there: Array) -> Array:
    """Mark the matches that go along with one of them, each of which gives a turn, a scale and a shift.

    The bounds are wide, for what the map has of shear and unequal scales.
    """
    place, goal = (frames[:, 0] + 1j * frames[:, 1] for frames in (here, there))
    turn = there[:, 3] - here[:, 3]
    carried = ((there[:, 2] / here[:, 2]) * np.exp(1j * turn))[:, None] * (place - place[:, None])
    near = np.abs(goal - goal[:, None] - carried) < 0.02 + 0.25 * np.abs(carried)
    near &= np.cos(turn - turn[:, None]) > 0.85  # noqa: PLR2004
    return near[near.sum(1).argmax()]


def _count_places(points: Array) -> int:
    """Count points, those within a fiftieth as one: a corner with many directions is no more than one corner."""
    return len(np.unique(np.round(50 * points), axis=0))


def _is_plausible(matrix: Array, most: float = 2.2, most_unequal: float = 2) -> bool:
    large, small = np.linalg.svd(matrix[:, :2], compute_uv=False)
    return np.linalg.det(matrix[:, :2]) > 0 and large < most and small > 1 / most and large < most_unequal * small


def _lay_over(
    here: tuple[Array, Array], there: tuple[Array, Array], matrix: Array, settings: Settings
) -> tuple[float, float]:
    """Carry one thumbnail onto another, each with its mask: `Pair.overlap` and `Pair.agreement`."""
    cv2 = _opencv()

    linear, shift = matrix[:, :2], matrix[:, 2]
    pixels = np.column_stack((linear, THUMBNAIL * shift + (linear.sum(1) - 1) / 2))
    square = (THUMBNAIL, THUMBNAIL)
    inside = cv2.warpAffine(here[1], pixels, square, flags=cv2.INTER_NEAREST) & there[1]
    moved = cv2.warpAffine(here[0], pixels, square, flags=cv2.INTER_LINEAR)
    smaller = min(there[1].sum(), here[1].sum() * np.linalg.det(linear))
    inner = cv2.erode(inside, np.ones((5, 5), np.uint8), borderValue=1).astype(bool)
    correlation, textured = _correlate(moved, there[0])
    seen = correlation[inner & textured]
    least = 0.01 * inside.size
    return float(inside.sum() / smaller), float((seen > settings.correlation).mean()) if len(seen) > least else 0.0


def _correlate(one: Array, other: Array, window: int = 13, least_deviation: float = 4) -> tuple[Array, Array]:
    """Correlate two pictures around each pixel, and say where both have something to correlate."""
    cv2 = _opencv()

    def mean(values: Array) -> Array:
        return cv2.boxFilter(values, -1, (window, window))

    one, other = (cv2.blur(picture, (3, 3)).astype(np.float32) for picture in (one, other))
    spread = [mean(picture * picture) - mean(picture) ** 2 for picture in (one, other)]
    together = mean(one * other) - mean(one) * mean(other)
    textured = np.minimum(*spread) > least_deviation**2
    return together / np.sqrt(np.maximum(spread[0] * spread[1], 1)), textured


def group(pairs: Iterable[Pair], count: int) -> list[int]:
    """Give each of `count` files the smallest index that pairs connect it with."""
    parent = list(range(count))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for pair in pairs:
        low, high = sorted((root(pair.first), root(pair.second)))
        parent[high] = low
    return [root(index) for index in range(count)]
