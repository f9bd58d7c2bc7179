"""Novelty: a tile's distance from those of the training, and the limit beyond which there is no opinion."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from histo_pl.errors import UserError
from histo_pl.hardware import without_autocast
from histo_pl.models.backbones import EncoderWithHead
from histo_pl.models.texture import describe_texture

SAMPLE = 20_000  # training tiles that it is fitted on, at most
ROUNDING = 1e-5  # of a distance in float32, which depends a little on the batch that a tile is in
LEAST_SPREAD = 0.1  # of a feature, as a share of the median one's: a channel that no training tile excites has none


@dataclass(frozen=True)
class NoveltyRule:
    """The user's choice, `novelty` in `conf/train.yaml`.

    Attributes:
        false_alarm: The share of tiles like those of the training that may be refused, in (0, 1).
    """

    false_alarm: float = 0.01

    def __post_init__(self) -> None:
        """Refuse a share out of range."""
        share = self.false_alarm
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share < 1:
            raise UserError(f"novelty.false_alarm is out of range. Expected between 0 and 1. Received: {share}")


class Novelty(nn.Module):
    """The Mahalanobis distance of features from their mean over the training tiles, divided by a limit.

    Args:
        center: The mean, of shape (width,).
        whitening: Of shape (width, width): the product of features with it has a variance of 1 in every direction.
        limit: The greatest distance of a tile that is like those of the training; positive.
        false_alarm: The share of such tiles that the limit refuses.
        validated: Number of tiles that the limit was chosen on.
    """

    center: Tensor
    whitening: Tensor

    def __init__(
        self, center: Tensor, whitening: Tensor, limit: float = 1.0, false_alarm: float = 0.01, validated: int = 0
    ) -> None:
        super().__init__()
        self.register_buffer("center", center)
        self.register_buffer("whitening", whitening)
        self.limit = limit
        self.false_alarm = false_alarm
        self.validated = validated

    @classmethod
    def fit(cls, features: Tensor) -> Self:
        """Fit mean and covariance; the limit is yet to be chosen.

        Args:
            features: Of training tiles, of shape (N, width), N at least 2.

        Returns:
            The model on the CPU.

        Raises:
            ValueError: A feature is not finite.
        """
        features = features.double().cpu()
        if not features.isfinite().all():
            raise ValueError("a feature is not finite")
        spread = features.std(0)
        spread = spread.clamp(min=max(LEAST_SPREAD * float(spread.median()), 1e-12))
        center = features.mean(0)
        precision = torch.linalg.inv(shrunk_covariance((features - center) / spread))
        whitening = torch.linalg.cholesky(precision) / spread[:, None]
        return cls(center.float(), whitening.float())

    def with_limit(self, distances: Tensor, false_alarm: float) -> "Novelty":
        """Choose the limit on tiles that it was not fitted on.

        Args:
            distances: Theirs, of shape (N,), N at least 1.
            false_alarm: The share of such tiles to refuse, in (0, 1).

        Returns:
            The same model with the limit.
        """
        limit = conformal_limit(distances, false_alarm)
        return Novelty(self.center, self.whitening, limit, false_alarm, len(distances))

    @property
    def is_guaranteed(self) -> bool:
        """True if the limit was chosen on enough tiles for the share of false alarms to hold."""
        return (self.validated + 1) * self.false_alarm >= 1

    def distance(self, features: Tensor) -> Tensor:
        """Compute the distance, of shape (B,), of features of shape (B, width)."""
        with without_autocast(features.device.type):  # as predict.py computes it, whatever the training's precision
            return ((features.float() - self.center) @ self.whitening).square().sum(1).sqrt()

    def forward(self, features: Tensor) -> Tensor:
        """Compute the novelty, (B,), of features (B, width): above 1 a tile is unlike those of the training."""
        return self.distance(features) / self.limit

    def describe_limit(self) -> dict[str, Any]:
        """Return limit, false_alarm, validated and is_guaranteed, as results.json carries them."""
        return {name: getattr(self, name) for name in ("limit", "false_alarm", "validated", "is_guaranteed")}

    def metadata(self) -> dict[str, Any]:
        """Return the arguments that make the same model, as a checkpoint keeps them."""
        names = ("center", "whitening", "limit", "false_alarm", "validated")
        return {name: getattr(self, name) for name in names}


def conformal_limit(distances: Tensor, false_alarm: float) -> float:
    """Return the distance that a new tile exceeds with a probability of at most `false_alarm`.

    It is the conformal quantile (Vovk et al. 2005): of N tiles, exchangeable with the new one, the k-th distance with
    k = ceil((N + 1) * (1 - false_alarm)). With fewer than 1 / false_alarm - 1 tiles there is none, and the greatest
    distance is returned.

    Args:
        distances: Of shape (N,), N at least 1.
        false_alarm: In (0, 1).
    """
    ordered = distances.double().sort().values
    rank = math.ceil((len(ordered) + 1) * (1 - false_alarm) - 1e-9)
    return max(float(ordered[min(rank, len(ordered)) - 1]), 1e-12) * (1 + ROUNDING)


def shrunk_covariance(centred: Tensor) -> Tensor:
    """Estimate a covariance, shrunk towards a multiple of the identity (Ledoit and Wolf, J. Multivariate Anal. 2004).

    Args:
        centred: Observations minus their mean, of shape (N, width).

    Returns:
        Of shape (width, width), positive definite unless all observations are equal.
    """
    count, width = centred.shape
    sample = centred.T @ centred / count
    scale = sample.trace() / width
    squared = sample.square().sum()
    noise = (centred.square().sum(1).square().mean() - squared) / (width * count)
    departure = (squared - scale**2 * width) / width
    shrinkage = float((noise.clamp(min=0) / departure).clamp(max=1)) if departure > 0 else 1.0
    target = max(float(scale), 1e-12) * torch.eye(width, dtype=centred.dtype)
    return (1 - shrinkage) * sample + shrinkage * target


def features_of(network: nn.Module, images: Tensor) -> Tensor:
    """Compute the features that novelty is judged by: those that an encoder's head sees, else colours and texture.

    Args:
        network: As `build_network` makes it.
        images: uint8 of shape (B, 3, S, S).

    Returns:
        float32 of shape (B, width).
    """
    backbone = network.get_submodule("backbone")
    if isinstance(backbone, EncoderWithHead):
        return backbone.encoder(network.get_submodule("preprocessing")(images)).float()
    return describe_texture(images)


def answer(network: nn.Module, novelty: Novelty | None, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Compute logits and novelty together: an encoder runs once.

    Args:
        network: As `build_network` makes it.
        novelty: Of its training tiles; None: not known.
        images: uint8 of shape (B, 3, S, S).

    Returns:
        Logits, float32 of shape (B,), and the novelty, of shape (B,), or None.
    """
    if novelty is None:
        return network(images).float(), None
    features = features_of(network, images)
    return logits_of(network, images, features), novelty(features)


def logits_of(network: nn.Module, images: Tensor, features: Tensor) -> Tensor:
    """Compute logits, float32 of shape (B,), of images whose features are known, see `features_of`."""
    backbone = network.get_submodule("backbone")
    if isinstance(backbone, EncoderWithHead):
        return backbone.classify(features).float()
    return network(images).float()


def novelty_from(metadata: Mapping[str, Any] | None) -> Novelty | None:
    """Make the model of a checkpoint's metadata, see `Novelty.metadata`; None of nothing."""
    return Novelty(**metadata) if metadata else None
