"""Views of a tile that show the same tissue: the eight of a square's symmetry."""

from collections.abc import Callable

import torch
from torch import Tensor


def dihedral_views(images: Tensor) -> list[Tensor]:
    """Turn square images by quarters, and their mirror images too.

    Args:
        images: Of shape (..., S, S).

    Returns:
        The eight views; the first is the images as they are.
    """
    return [torch.rot90(view, turns, (-2, -1)) for view in (images, images.flip(-1)) for turns in range(4)]


def mean_over_views(compute: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Average what a network says of the eight views of each image (test-time augmentation).

    Args:
        compute: From uint8 (B, 3, S, S) to logits of any one shape.
        images: uint8 of shape (B, 3, S, S).

    Returns:
        Logits of that shape.
    """
    return torch.stack([compute(view) for view in dihedral_views(images)]).mean(0)
