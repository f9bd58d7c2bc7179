"""The order in which tiles are drawn, shared among the devices."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler

from histo_pl.data.hashing import stable_seed
from histo_pl.data.tile import Tile

MAX_EPOCHS = 2**20  # numbers of passes from here on are no epochs


class ShuffledSampler(Sampler[int]):
    """Every tile once an epoch, in an order that seed and epoch decide, shared among the devices.

    The devices' shares are of one length, as their gradients need: the first tiles of the epoch's order
    fill up the last shares. It yields draws, pass * length + index, so that a worker knows the pass too: the epoch or,
    if a tile is drawn more than once in it, a number that no epoch has.

    Args:
        length: Number of tiles.
        seed: Any integer.
        rank: This process, from 0.
        world_size: Number of processes.
        weights: Relative frequency of each tile's draws, with replacement, of shape (length,); None: each once.
        current_epoch: Returns the epoch (from 0) of the pass that begins. None: the one of `set_epoch`, at first 0.
            Lightning calls `set_epoch` too late for processes that read ahead after a resume (its issue 21938).
    """

    def __init__(
        self,
        length: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        weights: Sequence[float] | None = None,
        current_epoch: Callable[[], int] | None = None,
    ) -> None:
        self.length = length
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.weights = weights
        self.current_epoch = current_epoch
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) that the next pass draws; Lightning calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of draws in this process's share."""
        return -(-self.length // self.world_size)

    def __iter__(self) -> Iterator[int]:
        """Yield this process's draws of the epoch."""
        epoch = self.epoch if self.current_epoch is None else self.current_epoch()
        generator = torch.Generator().manual_seed(stable_seed(self.seed, "order", epoch))
        if self.weights is None:
            order = torch.randperm(self.length, generator=generator).tolist()
        else:
            drawn = torch.multinomial(torch.tensor(self.weights), self.length, replacement=True, generator=generator)
            order = _numbered(drawn.tolist(), self.length)
        for position in range(self.rank, len(self) * self.world_size, self.world_size):
            yield epoch * self.length + order[position % self.length]


class UnpaddedDistributedSampler(Sampler[int]):
    """Every world_size-th tile, in order and without padding: all processes together see each tile once.

    Args:
        length: Number of tiles.
        rank: This process, from 0.
        world_size: Number of processes.
    """

    def __init__(self, length: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, length, world_size)

    def __len__(self) -> int:
        """Return the number of tiles in this process's share."""
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of this process's share."""
        return iter(self.indices)


def _numbered(indices: list[int], length: int) -> list[int]:
    """Add to an index that comes again a number of passes, so that it is augmented afresh."""
    times: Counter[int] = Counter()
    draws = []
    for index in indices:
        draws.append(times[index] * MAX_EPOCHS * length + index)
        times[index] += 1
    return draws


def class_weights(tiles: Sequence[Tile]) -> list[float]:
    """Weigh tiles so that all classes count alike.

    Args:
        tiles: N tiles.

    Returns:
        N positive weights: 1 / number of tiles of the same class.
    """
    counts = Counter(tile.class_name for tile in tiles)
    return [1 / counts[tile.class_name] for tile in tiles]
