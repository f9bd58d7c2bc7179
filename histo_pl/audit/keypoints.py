"""SIFT keypoints of tiles, which near duplicates are found by."""

import importlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
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

THUMBNAIL = 96  # pixels
LENGTH = 128  # of a descriptor: 4 cells down, 4 across, 8 directions


@dataclass(frozen=True)
class Settings:
    """Settings of the search, between time and recall. `docs/audit_copies.py` measures them.

    Attributes:
        side: Longer side in pixels at which keypoints are sought.
        keypoints: The strongest ones of each tile that are kept.
        words: Size of the vocabulary.
        candidates: Number of tiles that each tile is compared with, and as many again with its mirror image.
        ratio: Greatest squared distance of a match from its keypoint, as a share of the second best.
        inliers: Keypoints that must follow the map.
        tolerance: Greatest distance of a carried keypoint from its match, as a share of the longer side.
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
class Keypoints:
    """Keypoints and thumbnails of N tiles: arrays with one row a tile.

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
    def empty(cls, tiles: int, keypoints: int) -> "Keypoints":
        """Make arrays of zeros.

        Args:
            tiles: Number of tiles.
            keypoints: Greatest number of keypoints of a tile.
        """
        return cls(
            np.zeros(tiles, np.int32),
            np.zeros((tiles, keypoints, 4), np.float32),
            np.zeros((tiles, keypoints, LENGTH), np.uint8),
            np.zeros((tiles, THUMBNAIL, THUMBNAIL), np.uint8),
            np.zeros((tiles, 2), np.int32),
        )

    def known(self, start: int = 0, stop: int | None = None) -> Array:
        """Return a mask of the keypoints that exist, bool of shape (tiles, keypoints)."""
        return np.arange(self.frames.shape[1]) < self.counts[start:stop, None]


def find_keypoints(files: Sequence[Path], progress: Progress, settings: Settings) -> Keypoints:
    """Read the tiles and find their keypoints.

    Args:
        files: N image files.
        progress: Wraps a loop, given its length.
        settings: Settings of the search.

    Returns:
        Keypoints of N tiles.
    """
    keypoints = Keypoints.empty(len(files), settings.keypoints)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        described = pool.map(partial(_describe, settings=settings), files)
        for row, (frames, descriptors, thumbnail) in enumerate(progress(described, len(files))):
            height, width = thumbnail.shape
            keypoints.counts[row] = len(frames)
            keypoints.frames[row, : len(frames)] = frames
            keypoints.descriptors[row, : len(frames)] = descriptors
            keypoints.thumbnails[row, :height, :width] = thumbnail
            keypoints.extents[row] = width, height
    return keypoints


def _describe(file: Path, settings: Settings) -> tuple[Array, Array, Array]:
    cv2 = import_opencv()

    gray = cv2.cvtColor(read_rgb(file), cv2.COLOR_RGB2GRAY)
    thumbnail, picture = _shrink(gray, THUMBNAIL), _shrink(gray, settings.side)
    sift = cv2.SIFT_create(nfeatures=settings.keypoints, contrastThreshold=0.02)
    points, descriptors = sift.detectAndCompute(picture, None)
    if descriptors is None:
        return np.zeros((0, 4)), np.zeros((0, LENGTH)), thumbnail
    frames = np.array([(*point.pt, point.size, np.radians(point.angle)) for point in points])
    frames[:, :2] += 0.5
    frames[:, :2] *= np.array(thumbnail.shape[::-1]) / picture.shape[::-1] / THUMBNAIL
    frames[:, 2] /= settings.side
    root = np.sqrt(descriptors / np.maximum(descriptors.sum(1, keepdims=True), 1))
    few = slice(settings.keypoints)  # OpenCV may return one more
    return frames[few], np.round(255 * root[few]), thumbnail


def _shrink(gray: Array, side: int) -> Array:
    cv2 = import_opencv()

    scale = side / max(gray.shape)
    height, width = (max(1, round(scale * length)) for length in gray.shape)
    return cv2.resize(gray, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def import_opencv() -> Any:  # noqa: ANN401
    """Import the optional OpenCV, whose own threads would get in the way of ours."""
    try:
        opencv = importlib.import_module("cv2")
    except ImportError as error:
        raise UserError(
            f"Altered copies are found with OpenCV, which is not installed. Fix: pip install -e '.[audit]', or look "
            f"for exact copies alone with --exact-only. Received: {error}"
        ) from error
    opencv.setNumThreads(1)
    return opencv


def multiply(left: Array, right: Array) -> Array:
    """Return left (N, D) @ right.T (D, M), by PyTorch: NumPy's number of threads cannot be set."""
    return (torch.from_numpy(left) @ torch.from_numpy(right).T).numpy()
