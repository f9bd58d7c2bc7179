"""Callbacks: checkpoints, early stopping, seeds, the history of metrics, the warning of a collapse."""

import csv
import logging
import math
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import Tensor

from histo_pl.data.hashing import stable_seed
from histo_pl.errors import UserError
from histo_pl.models import KerasCNN
from histo_pl.storage import atomic_write_text, save_tensors

log = logging.getLogger(__name__)

QUICK = 1.0  # seconds: a checkpoint that takes less is written after every epoch


class BestCheckpoint(ModelCheckpoint):
    """A `ModelCheckpoint` that, when a run goes on in another folder, knows the best weights there.

    Lightning's own forgets the best score as soon as the folder changes, and calls the next epoch the best.

    Args:
        resume: The last.ckpt that the run goes on from, see `run_folder.claim_run_folder`. None: a new run.
        **options: As for `ModelCheckpoint`.
    """

    def __init__(self, resume: str | None = None, **options: Any) -> None:  # noqa: ANN401
        super().__init__(**options)
        self.resume = resume

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score, and where its weights lie now.

        Args:
            state_dict: As the interrupted run saved it.
        """
        if state_dict["best_model_path"] and self.resume:
            new = str(Path(str(self.dirpath), Path(state_dict["best_model_path"]).name))
            state_dict = state_dict | {
                "dirpath": self.dirpath,
                "best_model_path": new,
                "kth_best_model_path": new,
                "best_k_models": {new: state_dict["best_model_score"]},
            }
        super().load_state_dict(state_dict)


class LastCheckpoint(ModelCheckpoint):
    """A `ModelCheckpoint` whose writing takes a share of the training's time at most.

    The notebook's network at 512 pixels has 1.5 GB with Adam's means: seconds, where an epoch of few tiles, or on a
    GPU, takes no longer. The first epoch and the last are always written, and so is what takes less than a second.

    Args:
        share: In (0, 1]. 1: every epoch is written.
        **options: As for `ModelCheckpoint`.

    Attributes:
        epochs: Number of epochs that the file has; None before the training.

    Raises:
        UserError: The share is out of range.
    """

    epochs: int | None = None

    def __init__(self, share: float = 0.1, **options: Any) -> None:  # noqa: ANN401
        super().__init__(**options)
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share <= 1:
            raise UserError(f"callbacks.last.share is out of range. Expected above 0, at most 1. Received: {share}")
        self.share = share
        self._written = self._seconds = 0.0  # when it was written last, and how long that took

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the epochs of the file that a run is resumed from."""
        super().on_train_start(trainer, pl_module)
        self.epochs = trainer.current_epoch

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the epoch, if it is time."""
        if not self._is_due(trainer):
            return
        started = time.monotonic()
        super().on_train_epoch_end(trainer, pl_module)
        self._written = time.monotonic()
        self._seconds, self.epochs = self._written - started, trainer.current_epoch + 1

    def _is_due(self, trainer: L.Trainer) -> bool:
        """Decide for all processes, whose clocks differ."""
        is_last = trainer.max_epochs == trainer.current_epoch + 1 or trainer.max_steps == trainer.global_step
        elapsed = time.monotonic() - self._written + self._seconds
        is_cheap = self._seconds < QUICK or self._seconds <= self.share * elapsed
        return trainer.strategy.broadcast(trainer.should_stop or trainer.received_sigterm or is_last or is_cheap)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints beside their place and renames them into it.

    Lightning's own writes into the temporary folder and moves: onto another disk that is a copy into the old file,
    which a full disk leaves cut, and another name of which changes as well. It also holds the whole file in memory.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:  # noqa: ANN401
        """Write a checkpoint, whole or not at all.

        Args:
            checkpoint: As Lightning's trainer dumps it.
            path: The file to write.
            storage_options: Not used.

        Raises:
            WriteError: The disk is full, or the folder is gone or cannot be written.
        """
        save_tensors(checkpoint, Path(path))


class ResumableEarlyStopping(EarlyStopping):
    """An `EarlyStopping` that stays stopped: a run that is resumed after its last epoch trains no other.

    Attributes:
        stopped: It has ended the training.
    """

    stopped = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop at once if the interrupted run had decided to."""
        trainer.should_stop = trainer.should_stop or self.stopped

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Decide, and note it before the checkpoint is written."""
        super().on_train_epoch_end(trainer, pl_module)
        self.stopped = trainer.should_stop

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return super().state_dict() | {"stopped": self.stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it from a checkpoint; older ones do not say whether the training had ended."""
        super().load_state_dict(state_dict)
        self.stopped = state_dict.get("stopped", False)


class EpochSeeding(Callback):
    """Seeds the network's own random numbers, such as Dropout's, at every epoch's start: a resume changes nothing.

    Args:
        seed: Any integer.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Seed PyTorch by seed, epoch and process."""
        number = trainer.current_epoch * trainer.world_size + trainer.global_rank
        torch.manual_seed(stable_seed(self.seed, "network", number))


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

    def best(self, metric: str, mode: str) -> dict[str, float]:
        """Return the epoch that `ModelCheckpoint` keeps: the first of the best, NaN being the worst.

        Args:
            metric: Such as `val/loss`.
            mode: min or max.

        Returns:
            The metrics by name; `epoch` counts from 0.
        """
        sign = 1 if mode == "min" else -1
        return min(self.epochs, key=lambda epoch: math.inf if math.isnan(epoch[metric]) else sign * epoch[metric])

    def write(self, file: Path) -> None:
        """Write one row an epoch, epochs before a resume included.

        Args:
            file: The CSV to write; a logger's live table of the same name is replaced.
        """
        columns = ["epoch", *sorted({name for epoch in self.epochs for name in epoch} - {"epoch"})]
        with atomic_write_text(file) as stream:
            writer = csv.DictWriter(stream, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.epochs)

    def state_dict(self) -> dict[str, Any]:
        """Return the epochs for a checkpoint."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the epochs from a checkpoint."""
        self.epochs = list(state_dict["epochs"])


class CollapseWarning(Callback):
    """Logs `val/spread`, the largest minus the smallest probability, and says so, and why, when it vanishes.

    Attributes:
        least_spread: Below it all tiles count as having the same probability.
    """

    least_spread = 1e-5

    def __init__(self) -> None:
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
        self._images = batch.get("image")

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare the epoch's probabilities (under DDP: those of this process), log and warn."""
        probabilities, self._probabilities = torch.cat(self._probabilities), []
        spread = probabilities.max() - probabilities.min()
        pl_module.log("val/spread", spread, sync_dist=True, reduce_fx="max")
        if self.is_collapsed(spread.item()) and trainer.is_global_zero:
            log.warning(
                "Epoch %d: the network has collapsed: every validation tile got the probability %.4f. %s",
                trainer.current_epoch + 1,
                probabilities[0].item(),
                self._why(pl_module, trainer),
            )

    @classmethod
    def is_collapsed(cls, spread: float) -> bool:
        """Return whether such a spread of probabilities is none; NaN is none too."""
        return not spread >= cls.least_spread

    def _why(self, classifier: L.LightningModule, trainer: L.Trainer) -> str:
        network: Any = classifier.network
        if isinstance(network.backbone, KerasCNN) and self._images is not None:
            frozen = network.backbone.frozen_units(network.preprocessing(self._images))
            if frozen > 0.5:  # noqa: PLR2004
                groups = [group.get("name", "") for group in trainer.optimizers[0].param_groups]
                advice = "optim=adam_width_scaled, the default, prevents it at any image size."
                if any(name.startswith("wide_") for name in groups):  # it is in use
                    advice = "Take a lower optim.lr: its default is 0.001."
                return (
                    f"{frozen:.0%} of the dense layer's activations are frozen (slope below 1e-6), so nothing before "
                    f"them can learn. The first steps of Adam drove them there: the larger the image and optim.lr, the "
                    f"farther. {advice}"
                )
        return "The learning rate may be too high: try a lower optim.lr."
