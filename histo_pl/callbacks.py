"""What a training run watches and keeps."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from histo_pl.errors import UserError
from histo_pl.models import KerasCNN

log = logging.getLogger(__name__)


class BestCheckpoint(ModelCheckpoint):
    """A `ModelCheckpoint` that, when a run goes on in another folder, takes the best weights along.

    Lightning's own forgets the best score as soon as the folder changes, and calls the next epoch the best.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score and, in the new folder, its weights.

        Args:
            state_dict: What the interrupted run saved.

        Raises:
            UserError: The interrupted run's best weights are gone.
        """
        if state_dict["best_model_path"] and state_dict["dirpath"] != self.dirpath:
            old = Path(state_dict["best_model_path"])
            new = Path(str(self.dirpath)) / old.name
            _bring(old, new)
            state_dict = state_dict | {
                "dirpath": self.dirpath,
                "best_model_path": str(new),
                "kth_best_model_path": str(new),
                "best_k_models": {str(new): state_dict["best_model_score"]},
            }
        super().load_state_dict(state_dict)


@rank_zero_only
def _bring(old: Path, new: Path) -> None:
    if not old.is_file():
        raise UserError(
            f"The interrupted run's best weights are gone, so this run could not tell which epoch was the "
            f"best. Put the file back. Received: {old}"
        )
    new.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(old, new)  # half a gigabyte at 512 px; a save replaces the link and leaves the old file alone
    except OSError:
        shutil.copyfile(old, new)


class History(Callback):
    """Every epoch's metrics, kept across a stop and resume.

    Attributes:
        epochs: One dictionary an epoch: `epoch` (from 0) and each metric by its name.
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the epoch's metrics."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.epochs.append({"epoch": trainer.current_epoch, **metrics})

    def best(self, metric: str) -> dict[str, float]:
        """Return the epoch in which a metric was lowest, the first of equals.

        Args:
            metric: Such as `val/loss`.
        """
        return min(self.epochs, key=lambda epoch: epoch[metric])

    def state_dict(self) -> dict[str, Any]:
        """Return the epochs for a checkpoint."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the epochs from a checkpoint."""
        self.epochs = list(state_dict["epochs"])


class CollapseWarning(Callback):
    """Says so, and why, when every validation tile gets the same probability.

    Args:
        least_spread: Largest minus smallest probability below which all count as one, in [0, 1].

    Attributes:
        collapsed: Whether it was so at the end of the latest epoch.
    """

    def __init__(self, least_spread: float = 1e-5) -> None:
        self.least_spread = least_spread
        self.collapsed = False
        self._probabilities: list[Tensor] = []
        self._images: Tensor | None = None

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Note the batch's probabilities, (B,)."""
        self._probabilities.append(outputs["probability"])
        self._images = batch["image"]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare the epoch's probabilities, and warn."""
        probabilities, self._probabilities = torch.cat(self._probabilities), []
        spread = (probabilities.max() - probabilities.min()).item()
        self.collapsed = len(probabilities) > 1 and spread < self.least_spread
        if self.collapsed and trainer.is_global_zero:
            log.warning(
                "Epoch %d: the network has collapsed: all %d validation tiles got the probability %.4f. %s",
                trainer.current_epoch,
                len(probabilities),
                probabilities[0].item(),
                self._why(pl_module),
            )

    def _why(self, classifier: L.LightningModule) -> str:
        network: Any = classifier.network
        if not isinstance(network.backbone, KerasCNN) or self._images is None:
            return "A lower optim.lr often helps."
        frozen = network.backbone.frozen_units(network.preprocessing(self._images))
        return (
            f"{frozen:.0%} of the dense layer's activations are frozen (slope below 1e-6), so nothing before "
            f"them can learn. The first steps of Adam drove them there: the larger the image, the farther. "
            f"optim=adam_width_scaled, the default, prevents it."
        )
