"""The last checkpoint takes a share of the training's time at most, and the epochs that matter are always written."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.demos import BoringModel

from histo_pl.errors import UserError, WriteError
from histo_pl.training import callbacks
from histo_pl.training.callbacks import AtomicCheckpointIO, LastCheckpoint
from histo_pl.training.run_folder import report_interruption

NEVER_IN_A_TEST = 1e-9  # share of the time


class Recording(AtomicCheckpointIO):
    def __init__(self) -> None:
        self.epochs: list[int] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        self.epochs.append(checkpoint["epoch"])
        super().save_checkpoint(checkpoint, path, storage_options)


class StopsAfter(Callback):
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch == self.epoch


def trainer_of(folder: Path, share: float, *others: Callback, **options: Any) -> L.Trainer:
    last = LastCheckpoint(share, dirpath=folder, filename="last", save_on_train_epoch_end=True)
    return L.Trainer(
        accelerator="cpu",
        callbacks=[last, *others],
        logger=False,
        limit_train_batches=2,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def epochs_written(folder: Path, share: float, *others: Callback, **options: Any) -> list[int]:
    recording = Recording()
    trainer_of(folder, share, *others, plugins=[recording], **options).fit(BoringModel())
    return recording.epochs


def test_a_quick_checkpoint_is_written_every_epoch(tmp_path: Path) -> None:
    assert epochs_written(tmp_path, NEVER_IN_A_TEST, max_epochs=4) == [0, 1, 2, 3]


def test_a_slow_checkpoint_is_written_first_last_and_for_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "QUICK", 0.0)
    assert epochs_written(tmp_path, NEVER_IN_A_TEST, max_epochs=4) == [0, 3]
    assert epochs_written(tmp_path, NEVER_IN_A_TEST, max_epochs=-1, max_steps=6) == [0, 2]
    assert epochs_written(tmp_path, NEVER_IN_A_TEST, StopsAfter(2), max_epochs=9) == [0, 2]
    assert epochs_written(tmp_path, 1, max_epochs=4) == [0, 1, 2, 3]


def stop_at(folder: Path, epoch: int, ckpt_path: Path | None = None) -> str:
    """Let the disk be full as an epoch begins, and return the error."""

    class DiskIsFull(Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if trainer.current_epoch == epoch:
                raise WriteError("The disk is full")

    trainer = trainer_of(folder, NEVER_IN_A_TEST, DiskIsFull(), max_epochs=5)
    with pytest.raises(WriteError) as caught, report_interruption(folder, trainer, lambda *_: "python train.py"):
        trainer.fit(BoringModel(), ckpt_path=ckpt_path)
    return str(caught.value)


def test_a_run_that_stops_names_the_epoch_of_an_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "QUICK", 0.0)
    older = "last.ckpt is of epoch 1, as it takes long to write."
    assert f"Epoch 3 of 5 was not finished. {older} Kept in" in stop_at(tmp_path, 2)
    assert "Epoch 2 of 5 was not finished. Kept in" in stop_at(tmp_path, 1, tmp_path / "last.ckpt")


@pytest.mark.parametrize("share", [0, 1.5, True, "half"])
def test_a_share_out_of_range_is_refused(tmp_path: Path, share: Any) -> None:
    with pytest.raises(UserError, match=r"callbacks\.last\.share is out of range.*Received: "):
        LastCheckpoint(share, dirpath=tmp_path)
