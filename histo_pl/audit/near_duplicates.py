"""Near duplicates: altered copies of one image, flipped, turned, zoomed, sheared, recompressed, brightened.

Each tile becomes some 150 SIFT keypoints. Tiles with telling visual words in common are compared: a pair counts if
an affine map carries the keypoints of one onto their matches in the other and the pixels agree under that map. A
mirrored tile's descriptors are those of the tile in another order, so that flips cost no second look at the image.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from histo_pl.audit.keypoints import (
    DEFAULTS,
    LENGTH,
    THUMBNAIL,
    Array,
    Keypoints,
    Progress,
    Settings,
    find_keypoints,
    import_opencv,
    multiply,
)
from histo_pl.audit.visual_words import MIRROR, propose
from histo_pl.data.groups import DisjointSets


@dataclass(frozen=True)
class Pair:
    """Two files that show one image.

    Attributes:
        first: Index of one file.
        second: Index of the other, larger than `first`.
        inliers: Number of keypoints that the map carries onto their matches.
        overlap: Share of the smaller tile, as the map sees it, that lies on the other.
        agreement: Share of the overlap, blank places aside, where the pixels agree.
    """

    first: int
    second: int
    inliers: int
    overlap: float
    agreement: float


def find_near_duplicates(
    files: Sequence[Path], progress: Progress = lambda steps, _: steps, settings: Settings = DEFAULTS
) -> list[Pair]:
    """Find the pairs of tiles that are altered copies of one image.

    A tile that has hardly a keypoint, being blank or very smooth, is found to be a copy of nothing, not even of a
    file with the same bytes.

    Args:
        files: The tiles.
        progress: Wraps a loop, given its length. There are two: over the files, and over the comparisons.
        settings: Settings of the search.

    Returns:
        The pairs in order, the same in every run on one machine. Of many copies of one image not every two need be
        among them, but there is a chain of pairs from each to each.

    Raises:
        ImageError: A file cannot be read.
        UserError: OpenCV is not installed.
    """
    import_opencv()  # before any work
    keypoints = find_keypoints(files, progress, settings)
    proposals = propose(keypoints, settings)
    best: dict[tuple[int, int], Pair] = {}
    with _one_thread_a_product(), ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(
            lambda item: list(_compare(keypoints, item[0][0], item[0][1], item[1], settings)), proposals.items()
        )
        for pairs in progress(found, len(proposals)):
            best |= {(pair.first, pair.second): pair for pair in pairs}
    return [best[key] for key in sorted(best)]


@contextmanager
def _one_thread_a_product() -> Iterator[None]:
    """Keep small matrix products to the thread that asks for them: sharing one out costs more than it saves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _compare(
    keypoints: Keypoints, first: int, mirrored: bool, others: Sequence[int], settings: Settings
) -> Iterator[Pair]:
    """Yield the copies of one tile, or of its mirror image, among some others."""
    count = keypoints.counts[first]
    if count < settings.inliers:
        return
    frames, descriptors, mask, thumbnail = _view(keypoints, first, mirrored)
    there = keypoints.descriptors[others].astype(np.float32)
    similar = multiply(descriptors, there.reshape(-1, LENGTH)).reshape(count, len(others), -1) / 255**2
    for column, second in enumerate(others):
        here, matched = _match(similar[:, column, : keypoints.counts[second]], settings)
        if len(here) < settings.inliers:
            continue
        matrix, inliers = _fit_affine(frames[here], keypoints.frames[second, matched], settings)
        if inliers < settings.inliers or not _is_plausible(matrix):
            continue
        other = keypoints.thumbnails[second], _mask(keypoints.extents[second])
        overlap, agreement = _lay_over((thumbnail, mask), other, matrix, settings)
        if overlap >= settings.overlap and agreement >= settings.agreement:
            yield Pair(first, second, inliers, overlap, agreement)


def _view(keypoints: Keypoints, tile: int, mirrored: bool) -> tuple[Array, Array, Array, Array]:
    """A tile's frames, descriptors, and where its thumbnail has pixels, and these."""
    count, width = keypoints.counts[tile], keypoints.extents[tile, 0]
    frames = keypoints.frames[tile, :count]
    descriptors = keypoints.descriptors[tile, :count].astype(np.float32)
    thumbnail = keypoints.thumbnails[tile]
    if mirrored:
        frames = frames * np.array((-1, 1, 1, -1), np.float32) + np.array((width / THUMBNAIL, 0, 0, np.pi), np.float32)
        descriptors = np.ascontiguousarray(descriptors[:, MIRROR])
        thumbnail = np.concatenate((thumbnail[:, :width][:, ::-1], thumbnail[:, width:]), axis=1)
    return frames, descriptors, _mask(keypoints.extents[tile]), thumbnail


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
    origin, goal = (frames[:, 0] + 1j * frames[:, 1] for frames in (here, there))
    turn = there[:, 3] - here[:, 3]
    carried = ((there[:, 2] / here[:, 2]) * np.exp(1j * turn))[:, None] * (origin - origin[:, None])
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
    cv2 = import_opencv()

    linear, shift = matrix[:, :2], matrix[:, 2]
    pixels = np.column_stack((linear, THUMBNAIL * shift + (linear.sum(1) - 1) / 2))
    square = (THUMBNAIL, THUMBNAIL)
    inside = cv2.warpAffine(here[1], pixels, square, flags=cv2.INTER_NEAREST) & there[1]
    moved = cv2.warpAffine(here[0], pixels, square, flags=cv2.INTER_LINEAR)
    smaller = min(there[1].sum(), here[1].sum() * np.linalg.det(linear))
    inner = cv2.erode(inside, np.ones((5, 5), np.uint8), borderValue=1).astype(bool)
    correlation, textured = _correlate(moved, there[0])
    compared = correlation[inner & textured]
    enough = len(compared) > 0.01 * inside.size
    agreement = float((compared > settings.correlation).mean()) if enough else 0.0
    return float(inside.sum() / smaller), agreement


def _correlate(one: Array, other: Array, window: int = 13, least_deviation: float = 4) -> tuple[Array, Array]:
    """Correlate two pictures around each pixel, and say where both have something to correlate."""
    cv2 = import_opencv()

    def mean(values: Array) -> Array:
        return cv2.boxFilter(values, -1, (window, window))

    one, other = (cv2.blur(picture, (3, 3)).astype(np.float32) for picture in (one, other))
    spread = [mean(picture * picture) - mean(picture) ** 2 for picture in (one, other)]
    together = mean(one * other) - mean(one) * mean(other)
    textured = np.minimum(*spread) > least_deviation**2
    return together / np.sqrt(np.maximum(spread[0] * spread[1], 1)), textured


def group(pairs: Iterable[Pair], count: int) -> list[int]:
    """Number groups of files that pairs connect.

    Args:
        pairs: Indices below `count`.
        count: Number of files.

    Returns:
        For each file the smallest index of its group, at least 0.
    """
    sets = DisjointSets[int]()
    for pair in pairs:
        low, high = sorted((sets.root_of(pair.first), sets.root_of(pair.second)))
        sets.join(high, low)
    return [sets.root_of(index) for index in range(count)]
