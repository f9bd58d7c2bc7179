"""What train.py does, callable from Python."""

import json
import logging
import math
import os
import shlex
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from histo_pl.callbacks import BestCheckpoint, CollapseWarning, History
from histo_pl.data import HistologyDataModule
from histo_pl.data.splits import PARTS
from histo_pl.errors import UserError
from histo_pl.evaluation.plots import plot_confusion, plot_curves
from histo_pl.images import RESIZE
from histo_pl.models.classifier import TileClassifier

log = logging.getLogger(__name__)

# Lightning remarks on what is meant here, or is said better elsewhere.
EXPECTED_WARNINGS = (
    r".*exists and is not empty.*",
    r".*does not have many workers.*",
    r".*The number of training batches.*",
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*sync_dist=True.*",
    r"The dirpath has changed.*",
    r".*Using `DistributedSampler` with the dataloaders.*",
)

OmegaConf.register_new_resolver("share_of", lambda share, whole: math.ceil(share * whole), replace=True)


def train(config: DictConfig) -> dict[str, Any]:
    """Train, keep the best epoch's weights, test them, and write the run's folder.

    Args:
        config: As `conf/train.yaml` composes it.

    Returns:
        The contents of results.json.

    Raises:
        UserError: The data, the configuration or the checkpoint to resume from are not as expected.
    """
    started = time.monotonic()
    _quieten_lightning()
    L.seed_everything(config.seed, workers=True, verbose=False)
    folder = Path(os.path.relpath(config.run_dir))
    data: HistologyDataModule = instantiate(config.data, augment=instantiate(config.augment))
    data.setup()
    _announce(data)
    resume = _resumable(config.resume, data)
    classifier = _make_classifier(config, data)
    history, collapse = History(), CollapseWarning()
    trainer = _make_trainer(config, [history, collapse])
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, folder / "config.yaml", resolve=True)
        data.write_split(folder / "split.csv")
    trainer.fit(classifier, data, ckpt_path=resume, weights_only=True)
    best = _best_checkpoint(trainer)
    trainer.test(classifier, data, ckpt_path=best, weights_only=True, verbose=False)
    results = _results(trainer, classifier, data, history, collapse)
    results["run"] = {
        "folder": str(folder),
        "checkpoint": str(folder / Path(best).name),
        "device": str(trainer.strategy.root_device),
        "processes": trainer.world_size,
        "seconds": round(time.monotonic() - started, 1),
    }
    _write(results, history, folder)
    _report(results, data)
    return results


def _quieten_lightning() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)


def _make_classifier(config: DictConfig, data: HistologyDataModule) -> TileClassifier:
    return TileClassifier(
        network=OmegaConf.to_container(config.model, resolve=True),  # pyright: ignore[reportArgumentType]
        image_size=data.image_size,
        classes=[data.negative_class, data.positive_class],
        data=data.facts(),
        resize=RESIZE,
        optimizer=instantiate(config.optim),
    )


def _make_trainer(config: DictConfig, watchers: list[L.Callback]) -> L.Trainer:
    callbacks = [instantiate(callback) for callback in config.callbacks.values() if callback]
    if not config.trainer.enable_progress_bar:  # Lightning refuses a bar that is both given and switched off
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    return instantiate(
        config.trainer,
        callbacks=callbacks + watchers,
        logger=instantiate(config.logger),
        default_root_dir=config.run_dir,
    )


def _resumable(path: str | None, data: HistologyDataModule) -> str | None:
    """Refuse to go on with a run whose test tiles this run would train on."""
    if path is None:
        return None
    if not Path(path).is_file():
        raise UserError(f"There is no checkpoint to resume from. Expected a last.ckpt. Received: resume={path}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        split, optimizer = checkpoint["hyper_parameters"]["data"]["split"], checkpoint.get("optimizer_states")
    except Exception as error:
        raise UserError(f"This file is no checkpoint of histo_pl. Received: resume={path}") from error
    if not optimizer:
        raise UserError(
            f"This checkpoint has weights alone and cannot be resumed. Expected last.ckpt. Received: resume={path}"
        )
    if split != data.facts()["split"]:
        raise UserError(
            f"The checkpoint was trained on another split of the tiles. Use its own: "
            f"data.split_file={Path(path).with_name('split.csv')}. Received: resume={path}"
        )
    return path


def _best_checkpoint(trainer: L.Trainer) -> str:
    keeper = next(c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint))
    return keeper.best_model_path


def _results(
    trainer: L.Trainer,
    classifier: TileClassifier,
    data: HistologyDataModule,
    history: History,
    collapse: CollapseWarning,
) -> dict[str, Any]:
    (benign, wrongly_malignant), (missed, malignant) = classifier.test_confusion.compute().tolist()
    best = history.best("val/loss")
    return {
        "test": _metrics_of("test", trainer.callback_metrics)
        | {
            "tiles": benign + wrongly_malignant + missed + malignant,
            "confusion": {"tn": benign, "fp": wrongly_malignant, "fn": missed, "tp": malignant},
        },
        "validation": {"epoch": best["epoch"] + 1} | _metrics_of("val", best),
        "epochs": len(history.epochs),
        "collapsed": collapse.collapsed,
        "parameters": sum(p.numel() for p in classifier.network.parameters()),
        "threshold": classifier.hparams["threshold"],
        "data": data.facts(),
    }


def _metrics_of(stage: str, metrics: Any) -> dict[str, float]:  # noqa: ANN401
    prefix = f"{stage}/"
    return {name.removeprefix(prefix): float(v) for name, v in metrics.items() if name.startswith(prefix)}


@rank_zero_only
def _write(results: dict[str, Any], history: History, folder: Path) -> None:
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    name = results["data"]["name"]
    plot_curves(history.epochs, results["validation"]["epoch"] - 1, name, folder / "curves.png")
    confusion = results["test"]["confusion"]
    matrix = [[confusion["tn"], confusion["fp"]], [confusion["fn"], confusion["tp"]]]
    plot_confusion(matrix, f"{name}: test, {results['test']['tiles']} tiles", folder / "confusion.png")


@rank_zero_only
def _announce(data: HistologyDataModule) -> None:
    facts = data.facts()
    log.info("Data: %s, %s", facts["name"], facts["root"])
    log.info("Malignant is %s, benign is %s.", facts["positive_class"], facts["negative_class"])
    for part in PARTS:
        counts = facts["parts"][part]
        cases = "" if counts["cases"] is None else f", {counts['cases']} cases"
        log.info("  %-5s %5d tiles, %d malignant%s", part, counts["tiles"], counts["malignant"], cases)
    if data.group_regex is None:
        log.info("  The cases are unknown (data.group_regex): tiles of one patient may lie on both sides.")
    others = data.other_files()
    if others:
        log.info("  Left out, as they are no images: %d files, such as %s", len(others), others[0])


@rank_zero_only
def _report(results: dict[str, Any], data: HistologyDataModule) -> None:
    test, run = results["test"], results["run"]
    log.info("")
    log.info("Test on %d tiles with the weights of epoch %d:", test["tiles"], results["validation"]["epoch"])
    for name, value in test.items():
        if isinstance(value, float):
            log.info("  %-17s %.4f", name.replace("_", " "), value)
    if results["collapsed"]:
        log.info("The network had collapsed at the end: these figures are those of a constant.")
    if data.is_synthetic:
        log.info("These are tiles of the %s: the figures say nothing of real tissue.", data.name)
    log.info("Everything is in %s (%.0f s). To ask for an opinion:", run["folder"], run["seconds"])
    tile = data.part_paths("test")[0]
    log.info("")
    log.info("  python predict.py %s %s", _argument("ckpt", run["checkpoint"]), _argument("img", tile))


def _argument(key: str, value: str | Path) -> str:
    return f"{key}={shlex.quote(str(value))}"
