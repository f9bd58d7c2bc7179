"""Linear probe: logistic regression on the features of a frozen encoder, a step of its own instead of epochs."""

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from histo_pl.data import HistologyDataModule
from histo_pl.data.samplers import class_weights
from histo_pl.data.splits import fold_groups
from histo_pl.data.tile import Split, Tile
from histo_pl.errors import UserError
from histo_pl.models.backbones import EncoderWithHead
from histo_pl.probability import to_probability
from histo_pl.training.features import FeatureExtractor, Features
from histo_pl.training.module import TileClassifier

log = logging.getLogger(__name__)

TOLERANCE = 1e-6  # of the gradient of the mean loss
AUTO = "auto"
PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # that auto chooses from
FOLDS = 5  # of the training tiles


@dataclass(frozen=True)
class LogisticRegression:
    """scikit-learn's logistic regression with an L2 penalty, in the units of a mean loss.

    It minimizes the mean log loss over N observations plus weight_decay / 2 times the sum of the squared weights; the
    bias is not penalized. In scikit-learn's terms C = 1 / (weight_decay * N).

    Attributes:
        weight_decay: Strength of the penalty, at least 0; `auto`: chosen by `choose_penalty`.
        max_iter: Greatest number of L-BFGS iterations.
    """

    weight_decay: float | str = 1.0
    max_iter: int = 100

    def __post_init__(self) -> None:
        """Refuse settings out of range, before features are computed."""
        for key, value, least in (("weight_decay", self.weight_decay, 0), ("max_iter", self.max_iter, 1)):
            if key == "weight_decay" and value == AUTO:
                continue
            if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value < math.inf:
                raise UserError(f"optim.{key} is out of range. Expected at least {least}. Received: {value}")

    def fit(self, features: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Solve for the weights of a linear layer.

        Args:
            features: float32 of shape (N, width).
            labels: 1 for malignant, 0 for benign, of shape (N,).
            weights: Weight of each observation's loss, not negative, of shape (N,).

        Returns:
            The layer's weight, float32 of shape (1, width), and bias, of shape (1,).

        Raises:
            UserError: scikit-learn is not installed.
        """
        if isinstance(self.weight_decay, str):
            raise TypeError("the penalty is yet to be chosen")
        strength = self.weight_decay * len(features)
        solver = _scikit_learn().LogisticRegression(
            C=1 / strength if strength else np.inf, max_iter=self.max_iter, tol=TOLERANCE
        )
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always")
            solver.fit(features.double().numpy(), labels.numpy(), sample_weight=weights.double().numpy())
        if any("converge" in str(warning.message) for warning in raised):
            log.warning(
                "The logistic regression has not converged in %d iterations: raise optim.max_iter.", self.max_iter
            )
        return torch.tensor(solver.coef_).float(), torch.tensor(solver.intercept_).float()


@dataclass(frozen=True)
class LinearProbe:
    """A frozen encoder's features, kept on disk, and a logistic regression on them.

    Attributes:
        extractor: Finds or computes the features.
        solver: The logistic regression.
        augmentation: Settings of the augmentation of training views, as text.
    """

    extractor: FeatureExtractor
    solver: LogisticRegression
    augmentation: str

    def extract(self, data: HistologyDataModule, classifier: TileClassifier, device: torch.device) -> Features:
        """Find the features of all tiles, or compute them.

        Args:
            data: Set up.
            classifier: Its encoder is frozen.
            device: The device where the encoder runs.

        Returns:
            The features.

        Raises:
            UserError: The network has no frozen encoder, or the store cannot be used.
        """
        backbone = _frozen_backbone(classifier)
        encoder = nn.Sequential(classifier.network.preprocessing, backbone.encoder).to(device)
        features = self.extractor.extract(data, encoder, classifier.hparams["network"], self.augmentation)
        classifier.cpu()
        return features

    def fit(
        self, features: Features, data: HistologyDataModule, classifier: TileClassifier, *, keep_scale: bool
    ) -> dict[str, float]:
        """Fit the classifier's head.

        Args:
            features: Of all tiles.
            data: Set up.
            classifier: Its head is set.
            keep_scale: Keep the standardization of the features instead of fitting it to the training tiles.

        Returns:
            The metrics of training and validation, numbers by their names in metrics.csv, as those of epoch 0: at
            least the losses, the AUROC and the spread of the validation's probabilities.
        """
        backbone, tiles = classifier.network.backbone, data.tiles_of("train")
        training, labels = _stack(features.by_path, tiles, data.positive_class)
        if not keep_scale:
            backbone.standardize.fit(training)
        weights = torch.where(labels == 1, 1.0 if classifier.pos_weight is None else classifier.pos_weight, 1.0)
        if data.balanced:
            balance = torch.tensor(class_weights(tiles)).repeat(len(labels) // len(tiles))
            weights = weights * balance / balance.mean()
        inputs, solver = backbone.standardize(training), self.solver
        if solver.weight_decay == AUTO:
            plain = slice(len(tiles))  # the first of the views
            solver = choose_penalty(solver, tiles, inputs[plain], labels[plain], weights[plain])
        weight, bias = solver.fit(inputs, labels, weights)
        backbone.head.load_state_dict({"weight": weight, "bias": bias})
        classifier.eval()
        return {"epoch": 0.0, "weight_decay": float(solver.weight_decay)} | _metrics(classifier, features, data)


def choose_penalty(
    solver: LogisticRegression, tiles: Sequence[Tile], features: Tensor, labels: Tensor, weights: Tensor
) -> LogisticRegression:
    """Choose the penalty with the least log loss in a cross-validation over the training tiles, cases kept together.

    Args:
        solver: The logistic regression.
        tiles: N training tiles.
        features: Of their plain views, standardized, float32 of shape (N, width).
        labels: 1 for malignant, 0 for benign, of shape (N,).
        weights: Weight of each tile's loss, not negative, of shape (N,).

    Returns:
        The same with a penalty of `PENALTIES`; with 1.0 where a class has a single case.
    """
    of_class = {name: {t.group for t in tiles if t.class_name == name} for name in {t.class_name for t in tiles}}
    folds = min(FOLDS, *map(len, of_class.values()))
    if folds < 2:  # noqa: PLR2004
        log.warning("The penalty cannot be chosen from a single case of a class: optim.weight_decay=1.0 is taken.")
        return replace(solver, weight_decay=1.0)
    losses = dict.fromkeys(PENALTIES, 0.0)
    for fold in range(folds):
        chosen = fold_groups(tiles, folds, fold, 0)
        left_out = torch.tensor([tile.group in chosen for tile in tiles])
        for penalty in PENALTIES:
            one = replace(solver, weight_decay=penalty)
            weight, bias = one.fit(features[~left_out], labels[~left_out], weights[~left_out])
            logits = features[left_out] @ weight[0] + bias
            loss = nn.functional.binary_cross_entropy_with_logits(
                logits, labels[left_out].float(), weights[left_out].float(), reduction="sum"
            )
            losses[penalty] += float(loss)
    best = min(reversed(PENALTIES), key=losses.__getitem__)
    log.info(
        "The penalty of the linear probe is %g: the least log loss in %d folds of the training tiles.", best, folds
    )
    return replace(solver, weight_decay=best)


def _frozen_backbone(classifier: TileClassifier) -> EncoderWithHead:
    backbone = classifier.network.backbone
    if not isinstance(backbone, EncoderWithHead) or any(p.requires_grad for p in backbone.encoder.parameters()):
        raise UserError(
            f"A linear probe needs a frozen encoder. Expected a pretrained model such as model=efficientnet_lite0, and "
            f"model.trainable=head. Received: model={classifier.hparams['network']['name']}, not frozen"
        )
    return backbone


def _stack(by_path: Mapping[str, Tensor], tiles: list[Tile], positive_class: str) -> tuple[Tensor, Tensor]:
    """Stack all views of tiles: features of shape (views * N, width) and labels of shape (views * N,)."""
    features = torch.stack([by_path[tile.path] for tile in tiles], 1)  # (views, N, width)
    labels = torch.tensor([int(tile.class_name == positive_class) for tile in tiles])
    return features.flatten(0, 1), labels.repeat(len(features))


def _metrics(classifier: TileClassifier, features: Features, data: HistologyDataModule) -> dict[str, float]:
    found: dict[str, float] = {}
    stages: tuple[tuple[Split, Any], ...] = (("train", classifier.train_metrics), ("val", classifier.val_metrics))
    for split, metrics in stages:
        inputs, labels = _stack(features.by_path, data.tiles_of(split), data.positive_class)
        with torch.inference_mode():
            logits = classifier.network.backbone.classify(inputs)
            probability = to_probability(logits)
            metrics.update(probability, labels)
            loss = classifier.loss if split == "train" else classifier.unweighted_loss
            found[f"{split}/loss"] = float(loss(logits, labels.float()))
            found |= {name: float(value) for name, value in metrics.compute().items()}
            metrics.reset()
            if split == "val":
                found["val/spread"] = float(probability.max() - probability.min())
    return found


def _scikit_learn() -> Any:  # noqa: ANN401
    try:
        from sklearn import linear_model
    except ModuleNotFoundError as error:
        raise UserError(
            "The linear probe needs scikit-learn. Install it with pip install -e '.[pretrained]'. "
            "Received: no module named sklearn"
        ) from error
    return linear_model
