"""What train.py does, callable from Python."""

import json
import logging
import math
import os
import shlex
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
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
from histo_pl.start import find_start

log = logging.getLogger(__name__)

# Lightning remarks on what is meant here, or is said better elsewhere.
EXPECTED_WARNINGS = (
    r".*exists and is not empty.*",
    r".*does not have many workers.*",
    r"The number of training batches.*",
    r"`isinstance\(treespec, LeafSpec\)`.*",
    r"The dirpath has changed.*",
)

# Kind and least value of the keys that are typed most.
NUMBERS: dict[str, tuple[Any, int]] = {
    "seed": (int, 0),
    "data.image_size": (int, 1),
    "data.batch_size": (int, 1),
    "data.num_workers": (int, 0),
    "data.val_fraction": (int | float, 0),
    "data.test_fraction": (int | float, 0),
    "optim.lr": (int | float, 0),
    "trainer.max_epochs": (int, 1),
}

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
    _check_numbers(config)
    _quieten_lightning()
    L.seed_everything(config.seed, workers=True, verbose=False)
    folder = Path(os.path.relpath(config.run_dir))
    data: HistologyDataModule = instantiate(config.data, augment=instantiate(config.augment))
    data.setup()
    _announce(data)
    classifier = _make_classifier(config, data)
    history = History()
    trainer = _make_trainer(config, [history, CollapseWarning()])
    keeper = _keeper(trainer)
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, folder / "config.yaml")
        data.write_split(folder / "split.csv")
    with _lightning_errors():
        trainer.fit(classifier, data, ckpt_path=config.resume, weights_only=True)
    if not history.epochs:
        raise UserError(
            f"Nothing was trained. Expected trainer.max_epochs of at least 1. Received: {trainer.max_epochs}"
        )
    trainer.test(classifier, data, ckpt_path=keeper.best_model_path, weights_only=True, verbose=False)
    best = history.best(str(keeper.monitor), keeper.mode)
    results = _results(trainer, classifier, data, best, len(history.epochs))
    results["run"] = {
        "folder": str(folder),
        "checkpoint": str(folder / Path(keeper.best_model_path).name),
        "device": str(trainer.strategy.root_device),
        "processes": trainer.world_size,
        "seconds": round(time.monotonic() - started, 1),
    }
    _write(results, history, folder)
    _report(results, data)
    return results


def _check_numbers(config: DictConfig) -> None:
    """Refuse what would end in a traceback deep inside PyTorch: a word, or a number too small."""
    for key, (kind, least) in NUMBERS.items():
        value = OmegaConf.select(config, key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool) or value < least):
            whole = "a whole number" if kind is int else "a number"
            raise UserError(f"{key} is not as expected. Expected {whole} of at least {least}. Received: {value}")


def _quieten_lightning() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)


def _network_spec(config: DictConfig) -> dict[str, Any]:
    """What builds the network: the weights to start from have no part in it."""
    spec: Any = OmegaConf.to_container(config.model, resolve=True)
    return {key: value for key, value in spec.items() if key != "weights"}


def _make_classifier(config: DictConfig, data: HistologyDataModule) -> TileClassifier:
    spec, facts = _network_spec(config), data.facts()
    start = find_start(weights=config.model.get("weights"), resume=config.resume, spec=spec, facts=facts)
    classifier = TileClassifier(
        network=spec,
        image_size=data.image_size,
        classes=[data.negative_class, data.positive_class],
        data=facts if start.pretrained_on is None else facts | {"pretrained_on": start.pretrained_on},
        resize=RESIZE,
        optimizer=instantiate(config.optim),
    )
    if start.network is not None:
        classifier.network.load_state_dict(start.network.state_dict())
    return classifier


def _make_trainer(config: DictConfig, watchers: list[L.Callback]) -> L.Trainer:
    callbacks = [instantiate(callback) for callback in config.callbacks.values() if callback]
    if not config.trainer.enable_progress_bar:  # Lightning refuses a bar that is both given and switched off
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    with _lightning_errors():
        trainer: L.Trainer = instantiate(
            config.trainer,
            callbacks=callbacks + watchers,
            logger=instantiate(config.logger),
            default_root_dir=config.run_dir,
        )
    in_sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if in_sweep and trainer.world_size > 1:
        raise UserError(
            f"A sweep cannot use several processes: Lightning would start the whole sweep again in each. "
            f"Sweep on one device, or start the runs one by one. Received: {trainer.world_size} processes"
        )
    return trainer


@contextmanager
def _lightning_errors() -> Iterator[None]:
    """Tell the user's mistakes that Lightning finds, such as a GPU that is not there, as ours are told."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if isinstance(cause, MisconfigurationException | ModuleNotFoundError):
            extra = " Extras are installed with pip install -e '.[NAME]'." if isinstance(cause, ImportError) else ""
            reason = " ".join(str(cause).split())
            raise UserError(f"Lightning cannot run with this trainer, logger or callbacks: {reason}{extra}") from error
        raise


def _keeper(trainer: L.Trainer) -> BestCheckpoint:
    """Return the callback that keeps the best weights, which the test needs."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, BestCheckpoint):
            return callback
    raise UserError("The test needs the best epoch's weights. Expected callbacks.best. Received: none")


def _results(
    trainer: L.Trainer, classifier: TileClassifier, data: HistologyDataModule, best: dict[str, float], epochs: int
) -> dict[str, Any]:
    (benign, wrongly_malignant), (missed, malignant) = classifier.test_confusion.compute().tolist()
    return {
        "test": _metrics_of("test", trainer.callback_metrics)
        | {
            "tiles": benign + wrongly_malignant + missed + malignant,
            "confusion": {"tn": benign, "fp": wrongly_malignant, "fn": missed, "tp": malignant},
        },
        "validation": {"epoch": int(best["epoch"]) + 1} | _metrics_of("val", best),
        "epochs": epochs,
        "collapsed": CollapseWarning.is_collapsed(best["val/spread"]),
        "parameters": sum(p.numel() for p in classifier.network.parameters()),
        "threshold": classifier.hparams["threshold"],
        "data": classifier.hparams["data"],
    }


def _metrics_of(stage: str, metrics: Any) -> dict[str, float | None]:  # noqa: ANN401
    """Pick a stage's metrics; one that is undefined is None, as JSON knows no NaN."""
    values = {name.removeprefix(f"{stage}/"): float(metrics[name]) for name in metrics if name.startswith(f"{stage}/")}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


@rank_zero_only
def _write(results: dict[str, Any], history: History, folder: Path) -> None:
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    history.write(folder / "metrics.csv")
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
        log.info("  Left out, as they are no images of a class: %d files, such as %s", len(others), others[0])


@rank_zero_only
def _report(results: dict[str, Any], data: HistologyDataModule) -> None:
    test, run = results["test"], results["run"]
    log.info("")
    log.info("Test on %d tiles with the weights of epoch %d:", test["tiles"], results["validation"]["epoch"])
    for name, value in test.items():
        if value is None:
            log.info("  %-17s undefined", name.replace("_", " "))
        elif isinstance(value, float):
            log.info("  %-17s %.4f", name.replace("_", " "), value)
    if results["collapsed"]:
        log.info("The network had collapsed: these figures are those of a constant.")
    if data.is_synthetic:
        log.info("These are tiles of the %s: the figures say nothing of real tissue.", data.name)
    log.info("Everything is in %s (%.0f s). To ask for an opinion:", run["folder"], run["seconds"])
    tile = data.part_paths("test")[0]
    log.info("")
    log.info("  python predict.py %s %s", _argument("ckpt", run["checkpoint"]), _argument("img", tile))


def _argument(key: str, value: str | Path) -> str:
    return f"{key}={shlex.quote(str(value))}"
