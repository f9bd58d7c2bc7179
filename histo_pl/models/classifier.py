"""The network with its loss, optimiser and metrics, as Lightning trains it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import lightning as L
from torch import Tensor, nn
from torch.optim import Optimizer

from histo_pl.evaluation.metrics import binary_metrics
from histo_pl.models.network import build_network, to_probability

Stage = Literal["train", "val"]


class TileClassifier(L.LightningModule):
    """A tile's probability of malignancy.

    Its checkpoints hold all that a prediction needs, in plain values: `hyper_parameters` are these arguments,
    without the optimiser.

    Args:
        network: What `build_network` takes.
        image_size: Side of the network's input in pixels.
        classes: Names of the class folders, negative first.
        data: What trained it (`HistologyDataModule.facts`).
        resize: Name of the algorithm that brings tiles to `image_size`.
        threshold: A probability above it means malignant, in [0, 1].
        temperature: Divides the logits before the sigmoid, positive.
        rule: How the threshold was chosen, for people.
        refer: Two probabilities between which an answer is too uncertain; None: all are answered.
        seen: The part, train or val, of every tile that had a part in the training, by the hash of its file.
        optimizer: Makes the optimiser from the network; needed for training alone.
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
        seen: Mapping[str, str] | None = None,
        optimizer: Callable[[nn.Module], Optimizer] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer"], logger=False)
        self.network = build_network(network)
        self.temperature = temperature
        self.optimizer = optimizer
        self.loss = nn.BCEWithLogitsLoss()
        self.train_metrics = binary_metrics(threshold, prefix="train/")
        self.val_metrics = binary_metrics(threshold, prefix="val/")

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits.

        Args:
            images: uint8 of shape (B, 3, S, S), RGB in [0, 255].

        Returns:
            Logits of shape (B,); positive means malignant.
        """
        return self.network(images)

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """Return the loss of a batch, a scalar."""
        return self._step(batch, "train")["loss"]

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> dict[str, Tensor]:
        """Return the loss (scalar) and the probabilities (B,) of a batch."""
        return self._step(batch, "val")

    def predict_step(self, batch: dict[str, Any], batch_index: int, dataloader_idx: int = 0) -> dict[str, float]:
        """Return the logit of each tile by its path: what temperature and threshold make of it is decided later."""
        return dict(zip(batch["path"], self(batch["image"]).float().tolist(), strict=True))

    def configure_optimizers(self) -> Optimizer:
        """Make the optimiser."""
        if self.optimizer is None:
            raise RuntimeError("this classifier was made without an optimiser, so it can only predict")
        return self.optimizer(self.network)

    def _step(self, batch: dict[str, Any], stage: Stage) -> dict[str, Tensor]:
        logits, labels = self(batch["image"]), batch["label"]
        loss = self.loss(logits.float(), labels.float())
        probability = to_probability(logits.detach(), self.temperature)
        metrics = getattr(self, f"{stage}_metrics")
        metrics.update(probability, labels)
        epoch = {"on_step": False, "on_epoch": True, "batch_size": len(labels)}
        self.log(f"{stage}/loss", loss, prog_bar=True, sync_dist=True, **epoch)
        self.log_dict(metrics, **epoch)
        return {"loss": loss, "probability": probability}
