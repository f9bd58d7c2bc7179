"""The notebook's network."""

import platform
from collections import OrderedDict
from typing import Any, Literal

import torch
from torch import Tensor, nn

from histo_pl.errors import UserError
from histo_pl.hardware import multiplies_bfloat16, without_autocast

CHANNELS = (32, 64, 128)
ACTIVATIONS: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU}
X86 = platform.machine().lower() in ("x86_64", "amd64")
HAS_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")  # private, so that a release may drop it
MIN_IMAGE_SIZE = 22  # three times a 3x3 convolution and a halving leave one pixel


class KerasCNN(nn.Module):
    """Three 3x3 convolutions with max-pooling, a dense layer, one logit: 126,053,953 parameters at 512 px.

    Layers bear Keras's names. Weights start as Keras's do (`glorot_uniform`, Glorot and Bengio 2010; zero
    biases), which PyTorch's own defaults do not. Keras applies ReLU before pooling: the two commute, and
    pooling first leaves ReLU a quarter of the work.

    Args:
        image_size: Side of the square input in pixels, at least 22.
        dense_units: Width of the hidden dense layer.
        dense_activation: Activation of that layer. The notebook has sigmoid.

    Raises:
        UserError: The image is too small, or the activation unknown.
    """

    def __init__(
        self,
        image_size: int = 512,
        dense_units: int = 256,
        dense_activation: Literal["sigmoid", "relu"] = "sigmoid",
    ) -> None:
        super().__init__()
        if image_size < MIN_IMAGE_SIZE:
            raise UserError(
                f"The image is too small for three convolutions. Expected an image size of at least "
                f"{MIN_IMAGE_SIZE} pixels. Received: {image_size}"
            )
        if dense_activation not in ACTIVATIONS:
            raise UserError(
                f"model.dense_activation is unknown. Expected {' or '.join(ACTIVATIONS)}. Received: {dense_activation}"
            )
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels, side = 3, image_size
        for suffix, width in zip(("", "_1", "_2"), CHANNELS, strict=True):
            layers[f"conv2d{suffix}"] = nn.Conv2d(channels, width, kernel_size=3)
            layers[f"max_pooling2d{suffix}"] = nn.MaxPool2d(2)
            layers[f"relu{suffix}"] = nn.ReLU()
            channels, side = width, (side - 2) // 2
        self.features = nn.Sequential(layers)  # (B, 3, S, S) -> (B, 128, side, side)
        self.dense = nn.Linear(channels * side * side, dense_units)
        self.activation = ACTIVATIONS[dense_activation]()
        self.dense_1 = nn.Linear(dense_units, 1)
        self.apply(_initialise_as_keras)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits.

        Args:
            images: float of shape (B, 3, S, S) in [0, 1].

        Returns:
            Logits of shape (B,); positive means malignant.
        """
        hidden = self.activation(self._pre_activation(images))
        with without_autocast(images.device.type):  # near 1 bfloat16 would round the tiles' differences away
            return self.dense_1(hidden.float()).squeeze(1)

    def frozen_units(self, images: Tensor, least_slope: float = 1e-6) -> float:
        """Measure how much of the dense layer has stopped learning.

        Args:
            images: float of shape (B, 3, S, S) in [0, 1].
            least_slope: Activations with a smaller derivative count as frozen; the slope of a sigmoid is at
                most 0.25.

        Returns:
            Share in [0, 1] of units and images whose activation is frozen.
        """
        with torch.no_grad():
            before = self._pre_activation(images).float()
        with torch.enable_grad():
            before.requires_grad_()
            (slope,) = torch.autograd.grad(self.activation(before).sum(), before)
        return (slope < least_slope).float().mean().item()

    def _pre_activation(self, images: Tensor) -> Tensor:
        if not _prefers_blocks(images):
            return self.dense(self.features(images).flatten(1))
        maps = self._maps_in_blocks(images).float().flatten(1)
        return _WideLinear.apply(maps, self.dense.weight, self.dense.bias)  # pyright: ignore[reportReturnType]

    def _maps_in_blocks(self, images: Tensor) -> Tensor:
        """Compute the feature maps in oneDNN's blocked layout, in bfloat16 under autocast.

        It saves a conversion a layer and PyTorch's slow max-pooling: a training step on an x86 processor takes two
        thirds of the time (docs/benchmarks.md). The weights stay as they are. Autocast itself leaves that layout, and
        `conv2d` takes no bfloat16 in it.
        """
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else images.dtype
        with without_autocast("cpu"):
            maps = images.to_mkldnn(dtype)
            for layer in self.features:
                maps = _convolve(maps, layer, dtype) if isinstance(layer, nn.Conv2d) else layer(maps)
            return maps.to_dense(dtype)


class _WideLinear(torch.autograd.Function):
    """A dense layer of many inputs, in float32, by oneDNN: MKL takes twice the time for a batch of 8.

    In bfloat16 converting the weights, and their gradient back, costs more than the products gain.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # noqa: ANN401
        """Return inputs (B, N) times weight (M, N), plus bias (M,)."""
        ctx.save_for_backward(inputs, weight)
        return _multiply(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the gradients of what is not frozen, from (B, M)."""
        inputs, weight = ctx.saved_tensors
        of_inputs, of_weight, of_bias = ctx.needs_input_grad
        return (
            _multiply(gradient, weight.t()) if of_inputs else None,
            _multiply(gradient.t().contiguous(), inputs.t()) if of_weight else None,
            gradient.sum(0) if of_bias else None,
        )


def _multiply(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return left times the transpose of right, plus bias."""
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")


def _convolve(maps: Tensor, layer: nn.Conv2d, dtype: torch.dtype) -> Tensor:
    assert layer.bias is not None
    weight, bias = layer.weight.to(dtype), layer.bias.to(dtype)
    return torch.ops.aten.mkldnn_convolution(maps, weight, bias, (0, 0), (1, 1), (1, 1), 1)


def _prefers_blocks(images: Tensor) -> bool:
    """Tell if oneDNN computes these images' maps in its blocked layout, and faster so."""
    if images.device.type != "cpu" or images.dtype != torch.float32 or not X86:
        return False
    if torch.is_autocast_enabled("cpu") and (
        torch.get_autocast_dtype("cpu") != torch.bfloat16 or not multiplies_bfloat16()
    ):
        return False
    # An exported graph has the plain layers.
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    return HAS_ONEDNN and torch.backends.mkldnn.is_available() and not traced


def _initialise_as_keras(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
