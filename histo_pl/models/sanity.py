"""Sanity checks of a network's evidence maps: published ones on histology often agree no better than chance."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from histo_pl.models.evidence import explain, first_network, with_random_weights
from histo_pl.probability import to_probability

DRAWS = 3  # networks of random weights
SHARE = 0.1  # of a tile that is blurred
CELLS = 16  # cells a side that a map is compared by and blurred in: single pixels of a gradient are noise
BLUR = 8  # the width of the blur, in parts of a tile's side


def check_maps(network: nn.Module, images: Tensor, method: str, seed: int = 0) -> dict[str, Any]:
    """Compare a network's maps with those of random weights, and blur what they point at.

    Args:
        network: As `build_network` makes it; of a `FoldEnsemble` the first fold is checked.
        images: uint8 of shape (B, 3, S, S), B at least 2, on the network's device.
        method: One of `evidence.METHODS`.
        seed: Decides the random weights and places.

    Returns:
        tiles; correlation: the mean over tiles of Pearson's between the map and one of random weights, without its
        sign; and the mean probability of the tiles as they are (before), with the tenth of highest evidence blurred
        (after_top), and with a tenth of the same shape elsewhere (after_random).
    """
    one = first_network(network)
    cells = _cells(explain(one, images, method).maps)
    correlations = [
        _correlation(cells, _cells(explain(with_random_weights(one, images, seed + draw), images, method).maps))
        for draw in range(DRAWS)
    ]
    generator = torch.Generator().manual_seed(seed)
    top = _highest(cells)
    shifts = torch.randint(1, cells.shape[1], (len(cells), 2), generator=generator).tolist()
    elsewhere = torch.stack([mask.roll(shift, (0, 1)) for mask, shift in zip(top, shifts, strict=True)])
    return {
        "tiles": len(images),
        "correlation": float(torch.stack(correlations).abs().mean()),
        "before": _mean_probability(one, images),
        "after_top": _mean_probability(one, _blurred(images, top)),
        "after_random": _mean_probability(one, _blurred(images, elsewhere)),
    }


def describe_check(check: dict[str, Any]) -> str:
    """Write a check of maps as a sentence for people."""
    return (
        f"Check of the maps on {check['tiles']} tiles: with the tenth of highest evidence blurred the mean probability "
        f"goes from {check['before']:.3f} to {check['after_top']:.3f}, with a tenth elsewhere to "
        f"{check['after_random']:.3f}; the correlation with maps of random weights is {check['correlation']:.2f} (1: "
        f"training would have changed nothing)."
    )


def _cells(maps: Tensor) -> Tensor:
    """Average maps, (B, S, S), over cells, of shape (B, C, C)."""
    return nn.functional.adaptive_avg_pool2d(maps[:, None], min(CELLS, maps.shape[1]))[:, 0]


def _highest(cells: Tensor) -> Tensor:
    """Mark the highest tenth of cells, (B, C, C), of each map."""
    values = cells.flatten(1)
    chosen = values.topk(max(1, round(SHARE * values.shape[1]))).indices
    return torch.zeros_like(values, dtype=torch.bool).scatter(1, chosen, True).view_as(cells)


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    first, second = (part.flatten(1) - part.flatten(1).mean(1, keepdim=True) for part in (first, second))
    return nn.functional.cosine_similarity(first, second, dim=1)


def _blurred(images: Tensor, cells: Tensor) -> Tensor:
    """Blur images, uint8 (B, 3, S, S), where cells, (B, C, C), are true."""
    side = images.shape[2]
    width = side // BLUR | 1  # odd: it has a middle
    pixels = images.float()
    for _ in range(2):
        pixels = avg_pool2d(pixels, width, stride=1, padding=width // 2, count_include_pad=False)
    mask = nn.functional.interpolate(cells[:, None].float(), (side, side)).to(images.device) > 0
    return torch.where(mask, pixels.round().to(torch.uint8), images)


@torch.no_grad()
def _mean_probability(network: nn.Module, images: Tensor) -> float:
    return float(to_probability(network(images).float()).mean())
