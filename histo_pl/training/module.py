"""TileClassifier: the network with its loss, optimizer and metrics, as Lightning trains it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from histo_pl.errors import UserError
from histo_pl.models.network import FORMAT_VERSION, build_network
from histo_pl.probability import to_probability
from histo_pl.training.freezing import ALL, freeze_all_but
from histo_pl.training.metrics import binary_metrics

Stage = Literal["train", "val"]


class TileClassifier(L.LightningModule):
    """A tile's probability of malignancy.

    Its checkpoints hold all that a prediction needs, in plain values: `hyper_parameters` are these arguments,
    without the last four, which training alone needs.

    Args:
        network: The arguments of `build_network`.
        image_size: Side of the network's input in pixels.
        classes: Names of the class folders, negative first.
        data: Summary of the training data (`HistologyDataModule.summary`).
        resize: The algorithm that brings tiles to `image_size`, one of `images.RESIZES`.
        threshold: A probability above it means malignant, in [0, 1].
        temperature: Divides the logits before the sigmoid, positive.
        rule: Name of the rule that chose the threshold, for people.
        refer: Two probabilities between which an answer is too uncertain; None: all are answered.
        decision_tta: temperature, threshold, rule and refer of the mean of eight views; None: not chosen.
        training_hashes: The split, train or val, of every tile of the training, by the hash of its file.
        training_cases: The cases of the training, and of those before it, each with the arguments of
            `data.hashing.CaseHashes`.
        case_rule: The arguments of `evaluation.cases.CaseRule`; None: the defaults.
        novelty: The arguments of `models.novelty.Novelty`; None: not known.
        finished: The training ended, so that the weights are calibrated and tested.
        format_version: Of the checkpoint's contents, see `models.checkpoint`.
        optimizer: Makes the optimizer from the network; None: it can only predict.
        scheduler: Makes the learning-rate schedule from the optimizer and the number of steps; None: constant.
        trainable: The trainable parts of the backbone, see `freeze_all_but`.
        pos_weight: Weight of a malignant tile in the training loss, that of a benign one being 1; None: 1 too.
    """

    def __init__(
        self,
        *,
        network: Mapping[str, Any],
        image_size: int,
        classes: Sequence[str],
        data: Mapping[str, Any],
        resize: str,
        threshold: float = 0.5,
        temperature: float = 1.0,
        rule: str = "fixed",
        refer: Sequence[float] | None = None,
        decision_tta: Mapping[str, Any] | None = None,
        training_hashes: Mapping[str, str] | None = None,
        training_cases: Sequence[Mapping[str, Any]] = (),
        case_rule: Mapping[str, Any] | None = None,
        novelty: Mapping[str, Any] | None = None,
        finished: bool = False,
        format_version: int = FORMAT_VERSION,
        optimizer: Callable[[nn.Module], Optimizer] | None = None,
        scheduler: Callable[[Optimizer, int], LRScheduler] | None = None,
        trainable: str | Sequence[str] = ALL,
        pos_weight: float | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer", "scheduler", "trainable", "pos_weight"], logger=False)
        self.network: Any = build_network(network)
        self.temperature = temperature
        self.optimizer = optimizer
        self.scheduler = scheduler
        self._frozen = freeze_all_but(self.network.backbone, trainable)
        self.pos_weight = pos_weight
        self.loss = nn.BCEWithLogitsLoss(pos_weight=None if pos_weight is None else torch.tensor(pos_weight))
        self.unweighted_loss = nn.BCEWithLogitsLoss()  # of validation, by which the best epoch is chosen
        self.question: Callable[[Tensor], Tensor] = lambda images: self(images).float()[:, None]
        self.train_metrics = binary_metrics(threshold, prefix="train/")
        self.val_metrics = binary_metrics(threshold, prefix="val/")
        self.train()  # Lightning takes the modes as they are

    def train(self, mode: bool = True) -> Self:
        """Set the mode, but leave frozen parts in evaluation: their BatchNorm would learn the tiles' statistics."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits.

        Args:
            images: uint8 of shape (B, 3, S, S), RGB in [0, 255].

        Returns:
            Logits of shape (B,); positive means malignant.
        """
        return self.network(images)

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """Return the loss of a batch, of shape ()."""
        return self._step(batch, "train")["loss"]

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> dict[str, Tensor]:
        """Return the loss, of shape (), and the probabilities (B,) of a batch."""
        return self._step(batch, "val")

    def predict_step(
        self, batch: dict[str, Any], batch_index: int, dataloader_idx: int = 0
    ) -> tuple[list[str], Tensor]:
        """Return the (B,) paths and what `question` makes of their images, (B, k): by default their logits, (B, 1)."""
        return batch["path"], self.question(batch["image"]).float().cpu()

    def configure_optimizers(self) -> Any:  # noqa: ANN401
        """Make the optimizer and, if there is one, the learning-rate schedule, which steps with it."""
        if self.optimizer is None:
            raise RuntimeError("this classifier was made without an optimizer, so it can only predict")
        try:
            optimizer = self.optimizer(self.network)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"The optimizer does not take these settings ({error}). Expected those of its file in conf/optim. "
                f"Received: {getattr(self.optimizer, 'keywords', {})}"
            ) from error
        if self.scheduler is None:
            return optimizer
        schedule = self.scheduler(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _step(self, batch: dict[str, Any], stage: Stage) -> dict[str, Tensor]:
        logits, labels = self(batch["image"]), batch["label"]
        loss = (self.loss if stage == "train" else self.unweighted_loss)(logits.float(), labels.float())
        probability = to_probability(logits.detach(), self.temperature)
        metrics = getattr(self, f"{stage}_metrics")
        metrics.update(probability, labels)
        # A float: Lightning's mean of whole numbers over processes has no decimals, and weighs odd counts wrongly.
        epoch: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": float(len(labels))}
        self.log(f"{stage}/loss", loss, prog_bar=True, sync_dist=True, **epoch)
        self.log_dict(metrics, **epoch)
        return {"loss": loss, "probability": probability}
