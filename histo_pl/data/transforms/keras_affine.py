"""Keras's augmentation as one affine warp a tile."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample
from torchvision import tv_tensors
from torchvision.transforms import v2

from histo_pl.errors import UserError

DRAWS = 8  # random numbers that a tile takes: angle, two shifts, shear, two zooms, two flips


class KerasRandomAffine(v2.Transform):
    """Rotate, shift, shear, zoom and flip as Keras's `ImageDataGenerator` does: drawn anew for every tile.

    Keras multiplies the steps into one matrix and samples the tile once, bilinearly, its edges replicated
    (`fill_mode="nearest"`). torchvision's separate transforms sample it once a step, and softer each time.

    The arguments bear Keras's names and units, and every number is drawn uniformly and independently, from
    PyTorch's default generator or, of a batch in training, from a seed a tile (`draw`). It is for square tiles, as
    all are here. As in Keras 2.15 and 3.15, `height_shift_range` shifts sideways and `width_shift_range` up and
    down: the two are mixed up there.

    Args:
        rotation_range: Degrees; the angle is drawn from +- this.
        width_shift_range: Share of the side in [0, 1); the shift is drawn from +- this.
        height_shift_range: Share of the side in [0, 1); the shift is drawn from +- this.
        shear_range: Degrees; the shear angle is drawn from +- this.
        zoom_range: Lower and upper bound of the two zooms, or z for 1 - z to 1 + z. Below 1 magnifies,
            above 1 shows what lies beyond the edge: the edge's pixels, repeated.
        horizontal_flip: Mirror every second tile, at random, left to right.
        vertical_flip: Turn every second tile, at random, upside down.

    Raises:
        UserError: A range is no number or negative, a shift is not below 1, a zoom is not positive, or a flip is
            neither true nor false.
    """

    def __init__(
        self,
        rotation_range: float = 0.0,
        width_shift_range: float = 0.0,
        height_shift_range: float = 0.0,
        shear_range: float = 0.0,
        zoom_range: float | Sequence[float] = 0.0,
        horizontal_flip: bool = False,
        vertical_flip: bool = False,
    ) -> None:
        super().__init__()
        self.rotation_range = _checked("rotation_range", rotation_range)
        self.width_shift_range = _checked("width_shift_range", width_shift_range, below=1)
        self.height_shift_range = _checked("height_shift_range", height_shift_range, below=1)
        self.shear_range = _checked("shear_range", shear_range)
        self.zoom_range = _zoom_bounds(zoom_range)
        self.horizontal_flip = _checked_flip("horizontal_flip", horizontal_flip)
        self.vertical_flip = _checked_flip("vertical_flip", vertical_flip)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Tensor]:
        """Draw one set of parameters for each tile.

        Args:
            flat_inputs: A tensor (..., C, H, W); more are warped alike.

        Returns:
            By Keras's names, float64 of shape (B,), B being the product of the leading dimensions: `theta` and
            `shear` in degrees, `tx` and `ty` in pixels, `zx` and `zy`, `flip_horizontal` and `flip_vertical`
            (0 or 1).
        """
        *batch, _, height, width = flat_inputs[0].shape
        return self._params(torch.rand(DRAWS, math.prod(batch), dtype=torch.float64), height, width)

    def draw(self, seeds: Sequence[int], side: int) -> Tensor:
        """Draw the warp of each tile of a batch from a seed of its own, for `warp` to carry out on any device.

        Args:
            seeds: One a tile, in [0, 2**63).
            side: Of the tiles, in pixels.

        Returns:
            float32 of shape (B, 2, 3), see `keras_matrix`.
        """
        uniforms = np.stack([np.random.Generator(np.random.Philox(key=seed)).random(DRAWS) for seed in seeds], 1)
        return keras_matrix(**self._params(torch.from_numpy(uniforms), side, side)).float()

    def _params(self, uniforms: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """Spread numbers in [0, 1), of shape (DRAWS, B), over the ranges."""
        theta, tx, ty, shear, zx, zy, horizontal, vertical = uniforms
        low, high = self.zoom_range
        return {
            "theta": (2 * theta - 1) * self.rotation_range,
            "tx": (2 * tx - 1) * self.height_shift_range * height,
            "ty": (2 * ty - 1) * self.width_shift_range * width,
            "shear": (2 * shear - 1) * self.shear_range,
            "zx": low + (high - low) * zx,
            "zy": low + (high - low) * zy,
            "flip_horizontal": (horizontal < 0.5 * self.horizontal_flip).double(),
            "flip_vertical": (vertical < 0.5 * self.vertical_flip).double(),
        }

    def transform(self, inpt: Any, params: dict[str, Tensor]) -> Tensor:  # noqa: ANN401
        """Warp a tile or a batch.

        Args:
            inpt: Tensor (..., C, H, W), of bytes or, on a device that knows float64 (CPU, CUDA), of floats.
            params: As `make_params` returns them.

        Returns:
            A tensor of the same shape, type and device; bytes are rounded.
        """
        images = inpt.reshape(-1, *inpt.shape[-3:])
        warped = warp(images, keras_matrix(**params)).reshape(inpt.shape)
        return tv_tensors.wrap(warped, like=inpt)  # pyright: ignore[reportCallIssue]


def keras_matrix(
    theta: Tensor,
    tx: Tensor,
    ty: Tensor,
    shear: Tensor,
    zx: Tensor,
    zy: Tensor,
    flip_horizontal: Tensor,
    flip_vertical: Tensor,
) -> Tensor:
    """Multiply rotation, shift, shear, zoom and flip in Keras's order.

    A flip of the result is a flip of the coordinates that are looked up, so it costs nothing.

    Args:
        theta: Rotation in degrees, (B,).
        tx: Shift along x in pixels, (B,).
        ty: Shift along y in pixels, (B,).
        shear: Shear angle in degrees, (B,).
        zx: Zoom along x, (B,); below 1 magnifies.
        zy: Zoom along y, (B,).
        flip_horizontal: 1 to mirror left to right, else 0, (B,).
        flip_vertical: 1 to turn upside down, else 0, (B,).

    Returns:
        float64 (B, 2, 3): from an output pixel (x, y, 1) to the input pixel (x, y), both in pixels from the
        centre. Source: `apply_affine_transform` of Keras 3.15.
    """
    angle, slant = torch.deg2rad(theta), torch.deg2rad(shear)
    zero, one = torch.zeros_like(theta), torch.ones_like(theta)
    rotation = _matrix(torch.cos(angle), -torch.sin(angle), torch.sin(angle), torch.cos(angle))
    shearing = _matrix(one, -torch.sin(slant), zero, torch.cos(slant))
    zoom = _matrix(zx * (1 - 2 * flip_horizontal), zero, zero, zy * (1 - 2 * flip_vertical))
    shift = rotation @ torch.stack((tx, ty), 1).unsqueeze(2)
    return torch.cat((rotation @ shearing @ zoom, shift), 2)


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Sample each image once, bilinearly, its edges replicated.

    Floats are computed in float64: a float32 coordinate is off by up to 3e-5 pixels at 512, which can be a hundredth
    of a grey level. Of bytes, which are rounded anyway, that changes one in 16,000, by one; they take float32.

    Args:
        images: Bytes or floats of shape (B, C, H, W).
        matrices: (B, 2, 3), as `keras_matrix` returns them.

    Returns:
        Images of the same shape and type; bytes are rounded.
    """
    dtype = torch.float64 if images.is_floating_point() else torch.float32
    matrices = matrices.to(images.device, dtype)
    warped = torch.empty(images.shape, dtype=images.dtype, device=images.device)
    if images.device.type == "cpu":
        for place, image, matrix in zip(warped, images, matrices, strict=True):
            _warp_in_strips(place, image.to(dtype), matrix)
        return warped
    return warped.copy_(_sample(images.to(dtype), _grid(matrices, *images.shape[-2:]), warped.dtype))


def _warp_in_strips(place: Tensor, image: Tensor, matrix: Tensor) -> None:
    """Warp one image, (C, H, W), which so stays in the processor's cache, each thread a strip of its rows."""
    channels, height, width = image.shape
    strips = math.gcd(height, torch.get_num_threads())
    grid = _grid(matrix[None], height, width).view(strips, height // strips, width, 2)
    warped = _sample(image.expand(strips, -1, -1, -1), grid, place.dtype)
    place.view(channels, strips, height // strips, width).copy_(warped.transpose(0, 1))


def _sample(images: Tensor, grid: Tensor, dtype: torch.dtype) -> Tensor:
    """Sample floats; round them if they are to become bytes."""
    sampled = grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled if dtype.is_floating_point else sampled.round_()


def _grid(matrices: Tensor, height: int, width: int) -> Tensor:
    """Return each pixel's origin, (B, H, W, 2) in half sides from the centre: `affine_grid` at a fifth of its cost."""
    half = torch.tensor([width / 2, height / 2], dtype=matrices.dtype, device=matrices.device)
    x = torch.arange(width, dtype=matrices.dtype, device=matrices.device) + 0.5 - half[0]
    y = torch.arange(height, dtype=matrices.dtype, device=matrices.device) + 0.5 - half[1]
    along_x, along_y, shift = (matrices / half[:, None])[:, :, None].unbind(-1)  # (B, 2, 1) each
    columns = (along_x * x).mT  # (B, W, 2)
    rows = (along_y * y + shift).mT  # (B, H, 2)
    return columns[:, None] + rows[:, :, None]


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return torch.stack((a, b, c, d), 1).reshape(-1, 2, 2)


def _checked(name: str, value: float, below: float = math.inf) -> float:
    if not _is_number(value) or not 0 <= value < below:
        limit = "" if below == math.inf else f" and less than {below}"
        raise UserError(f"augment.{name} is out of range. Expected at least 0{limit}. Received: {value}")
    return float(value)


def _checked_flip(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"augment.{name} is not as expected. Expected true or false. Received: {value}")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _zoom_bounds(zoom_range: float | Sequence[float]) -> tuple[float, float]:
    bounds = (1 - zoom_range, 1 + zoom_range) if isinstance(zoom_range, int | float) else tuple(zoom_range or ())
    if len(bounds) != 2 or not all(map(_is_number, bounds)) or not 0 < bounds[0] <= bounds[1]:  # noqa: PLR2004
        raise UserError(
            f"augment.zoom_range is out of range. Expected z of at least 0 and less than 1, or a lower and an upper "
            f"bound above 0. Received: {zoom_range}"
        )
    return bounds[0], bounds[1]
