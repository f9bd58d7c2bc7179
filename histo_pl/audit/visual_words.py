"""Bag of visual words: the pairs of tiles that are worth a comparison."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from histo_pl.audit.keypoints import LENGTH, Array, Keypoints, Settings, multiply

Proposals = dict[tuple[int, bool], list[int]]  # by a tile and its mirroring: later tiles to compare it with

SEED = 0
MIRROR = np.arange(LENGTH).reshape(4, 4, 8)[::-1][:, :, -np.arange(8)].ravel()


def propose(keypoints: Keypoints, settings: Settings) -> Proposals:
    """Choose the pairs worth a comparison: all of few tiles, else those with the most telling words in common.

    Args:
        keypoints: Of N tiles.
        settings: Settings of the search.

    Returns:
        For each tile, plain and mirrored, the indices of the later tiles to compare it with.
    """
    tiles = len(keypoints.counts)
    chosen: defaultdict[tuple[int, bool], set[int]] = defaultdict(set)
    if tiles - 1 <= settings.candidates:
        for first in range(tiles - 1):
            chosen[first, False] = chosen[first, True] = set(range(first + 1, tiles))
    else:
        vocabulary = _learn_words(keypoints, settings)
        bags = Bags(_find_words(keypoints, vocabulary), len(vocabulary))
        for tile, mirrored, nearest in bags.nearest(settings.candidates):
            for other in nearest:
                chosen[min(tile, other), mirrored].add(max(tile, other))
    return {key: sorted(others) for key, others in sorted(chosen.items())}


def _learn_words(keypoints: Keypoints, settings: Settings, rounds: int = 4, sample: int = 60_000) -> Array:
    """Cluster a sample of the descriptors. The second half of the words mirror those of the first, in order."""
    rng = np.random.default_rng(SEED)
    tiles, columns = np.nonzero(keypoints.known())
    chosen = np.sort(rng.permutation(len(tiles))[:sample])
    points = keypoints.descriptors[tiles[chosen], columns[chosen]].astype(np.float32) / 255
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
    return np.concatenate([multiply(part, words).argmax(1) for part in blocks])


def _find_words(keypoints: Keypoints, vocabulary: Array, block: int = 64) -> Array:
    """Return the word of each keypoint, -1 beyond the last, of shape (tiles, keypoints)."""
    words = np.full(keypoints.frames.shape[:2], -1, np.int32)
    for start in range(0, len(words), block) if len(vocabulary) else ():
        part = slice(start, start + block)
        known = keypoints.known(start, start + block)
        if known.any():
            words[part][known] = _nearest_word(keypoints.descriptors[part][known].astype(np.float32), vocabulary)
    return words


class Bags:
    """Tiles as bags of words, each weighted by its rarity.

    Args:
        words: As `_find_words` returns them.
        size: Of the vocabulary, whose second half mirrors the first.
    """

    def __init__(self, words: Array, size: int) -> None:
        self.words = words
        self.size = size
        tiles, columns = np.nonzero(words >= 0)
        keys = np.unique(tiles.astype(np.int64) * max(size, 1) + words[tiles, columns])
        holders = np.bincount(keys % max(size, 1), minlength=size)
        holders = holders + self._mirror(holders)
        self.weights = np.log(2 * len(words) / np.maximum(holders, 1)).astype(np.float32)

    def _mirror(self, bags: Array) -> Array:
        return np.roll(bags, self.size // 2, axis=-1)

    def vectors(self, start: int, stop: int) -> Array:
        """Return the bags of tiles `start` to `stop`, of shape (tiles, size), each of length one."""
        part = self.words[start:stop]
        tiles, columns = np.nonzero(part >= 0)
        counts = np.bincount(tiles * self.size + part[tiles, columns], minlength=len(part) * self.size)
        bags = np.sqrt(counts.reshape(len(part), self.size), dtype=np.float32) * self.weights
        return bags / np.maximum(np.linalg.norm(bags, axis=1, keepdims=True), 1e-6)

    def nearest(self, count: int, block: int = 512) -> Iterator[tuple[int, bool, list[int]]]:
        """Yield each tile, plain and mirrored, with the tiles most similar to it.

        Args:
            count: Number of similar tiles, at least 1.
            block: Number of tiles compared at a time.
        """
        tiles = len(self.words)
        for start in range(0, tiles, block):
            plain = self.vectors(start, start + block)
            queries = np.concatenate((plain, self._mirror(plain)))
            similar = np.concatenate(
                [multiply(queries, self.vectors(other, other + block)) for other in range(0, tiles, block)], axis=1
            )
            queried = start + np.arange(len(queries)) % len(plain)
            similar[np.arange(len(queries)), queried] = 0
            for row, best in enumerate(np.argpartition(similar, -count, axis=1)[:, -count:]):
                yield int(queried[row]), row >= len(plain), [int(tile) for tile in best if similar[row, tile] > 0]
