"""Evidence maps of a report: those of the worst mistakes, and the check of the model's maps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from histo_pl.evaluation.predictions import Predictions
from histo_pl.evaluation.report import worst_mistakes
from histo_pl.images import read_tile
from histo_pl.models.evidence import METHODS, explain, method_for
from histo_pl.models.sanity import check_maps, describe_check
from histo_pl.overlays import Map, smooth_map

CHECKED = 16  # tested tiles, evenly spaced


@dataclass(frozen=True)
class Explained:
    """The evidence of a report.

    Attributes:
        maps: A smoothed map of each mistake, of shape (S, S), by the tile's path.
        lines: Sentences on the method, its check and its limits.
        check: As `check_maps` returns it.
    """

    maps: Mapping[str, Map] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
    check: Mapping[str, Any] = field(default_factory=dict)


def explain_predictions(
    network: nn.Module, predictions: Predictions, root: Path, image_size: int, resize: str, wanted: str | bool
) -> Explained:
    """Compute the maps of the worst mistakes, and check maps on some of the tested tiles.

    Args:
        network: As `build_network` makes it, or a `FoldEnsemble`; in evaluation mode.
        predictions: The tested tiles, their paths relative to `root`, at least two.
        root: The folder of the tiles.
        image_size: Side of the network's input in pixels.
        resize: One of `images.RESIZES`.
        wanted: See `evidence.method_for`; False: nothing is explained.

    Returns:
        The maps and what is to be said of them; empty if nothing is explained.

    Raises:
        UserError: The network does not allow the method, or it needs captum.
    """
    method = method_for(network, wanted)
    if method is None:
        return Explained()
    device = next(network.parameters()).device

    def read(paths: list[str]) -> Tensor:
        return torch.stack([read_tile(root / path, image_size, resize) for path in paths]).to(device)

    mistakes = predictions.path[worst_mistakes(predictions)].tolist()
    maps = explain(network, read(mistakes), method).maps if mistakes else []
    count = min(CHECKED, len(predictions))
    checked = predictions.path[np.linspace(0, len(predictions) - 1, count).round().astype(int)].tolist()
    check = check_maps(network, read(checked), method)
    lines = (
        f"Maps: {METHODS[method]}. Red speaks for malignant, blue for benign.",
        describe_check(check),
        "A map shows where the network's answer comes from, and not that the place is malignant.",
    )
    return Explained(dict(zip(mistakes, map(smooth_map, maps), strict=True)), lines, check | {"method": method})
