"""From the bytes of a tile to the numbers a network was trained on: part of the network itself."""

from torch import Tensor, nn


class UnitRange(nn.Module):
    """Scale bytes to [0, 1], as the notebook's `rescale=1/255`."""

    def forward(self, images: Tensor) -> Tensor:
        """Scale a batch.

        Args:
            images: uint8 of shape (B, 3, S, S), RGB in [0, 255].

        Returns:
            float32 of the same shape in [0, 1].
        """
        return images.float() / 255
