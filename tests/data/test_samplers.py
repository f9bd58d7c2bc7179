from collections import Counter

import pytest

from histo_pl.data.samplers import ShuffledSampler, UnpaddedDistributedSampler


def test_each_epoch_has_its_own_order_of_all_tiles() -> None:
    sampler = ShuffledSampler(10, seed=0)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(first) == list(range(10))
    assert sorted(second) == list(range(10, 20))
    assert [draw - 10 for draw in second] != first
    assert list(ShuffledSampler(10, seed=1)) != first


@pytest.mark.parametrize(("length", "world_size"), [(10, 3), (8, 2), (2, 4)])
def test_devices_share_an_epoch_evenly_and_completely(length: int, world_size: int) -> None:
    shares = [list(ShuffledSampler(length, 0, rank, world_size)) for rank in range(world_size)]
    assert {len(share) for share in shares} == {-(-length // world_size)}
    assert {draw for share in shares for draw in share} == set(range(length))


@pytest.mark.parametrize("length", [1, 32, 33])
def test_evaluation_counts_every_tile_once(length: int) -> None:
    shares = [list(UnpaddedDistributedSampler(length, rank, 2)) for rank in range(2)]
    assert Counter(index for share in shares for index in share) == Counter(range(length))
    assert [len(UnpaddedDistributedSampler(length, rank, 2)) for rank in range(2)] == [len(share) for share in shares]


def test_weights_draw_a_rare_class_as_often_and_each_time_afresh() -> None:
    weights = [1 / 90] * 90 + [1 / 10] * 10
    sampler = ShuffledSampler(100, seed=0, weights=weights)
    sampler.set_epoch(3)
    draws = list(sampler)
    assert len(set(draws)) == 100  # a tile that comes again is another draw, so it is augmented anew
    assert 35 <= sum(draw % 100 >= 90 for draw in draws) <= 65
    assert not set(draws) & {draw + 100 * epoch for draw in range(100) for epoch in (0, 1, 2, 4)}
    shares = [list(ShuffledSampler(100, 0, rank, 2, weights)) for rank in range(2)]
    sampler.set_epoch(0)
    assert sorted(shares[0] + shares[1]) == sorted(sampler)


def test_the_epoch_is_asked_for_when_a_pass_begins() -> None:
    """Lightning may make the loader before it knows the epoch of a resume, and tells it after the first pass began."""
    epoch = [0]
    sampler = ShuffledSampler(10, seed=0, current_epoch=lambda: epoch[0])
    epoch[0] = 3
    assert min(sampler) == 30
