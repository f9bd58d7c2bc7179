"""Views of a tile that show the same tissue: the eight of a square's symmetry."""

import torch
from torch import Tensor, nn


def dihedral_views(images: Tensor) -> list[Tensor]:
    """Turn square images by quarters, and their mirror images too.

    Args:
        images: Of shape (..., S, S).

    Returns:
        The eight views; the first is the images as they are.
    """
    return [torch.rot90(view, turns, (-2, -1)) for view in (images, images.flip(-1)) for turns in range(4)]


def mean_logits(network: nn.Module, images: Tensor) -> Tensor:
    """Average the logits of the eight views of each image (test-time augmentation).

    Args:
        network: uint8 (B, 3, S, S) to logits (B,).
        images: uint8 of shape (B, 3, S, S).

    Returns:
        float32 of shape (B,).
    """
    return torch.stack([network(view).float() for view in dihedral_views(images)]).mean(0)
