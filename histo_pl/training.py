"""What train.py does, callable from Python."""

import logging
import math
import os
import shlex
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import nn

from histo_pl.callbacks import BestCheckpoint, CollapseWarning, EpochSeeds, History, WholeCheckpoints
from histo_pl.data import HistologyDataModule
from histo_pl.data.splits import PARTS, Part
from histo_pl.embeddings import Embedder
from histo_pl.errors import UserError
from histo_pl.evaluation import plots
from histo_pl.evaluation.calibration import Calibration, Decision
from histo_pl.evaluation.measures import NAMES
from histo_pl.evaluation.report import Report
from histo_pl.evaluation.scores import Scores
from histo_pl.evidence import (
    colour_baseline,
    judge,
    log_results,
    remarks,
    score,
    without_nan,
    write_predictions,
    write_results,
)
from histo_pl.images import RESIZE
from histo_pl.inference.checkpoint import update_facts
from histo_pl.models.backbones import EncoderWithHead
from histo_pl.models.classifier import TileClassifier
from histo_pl.models.freezing import ALL
from histo_pl.models.weights import resolve_spec
from histo_pl.run_folder import kept_files_named, taken
from histo_pl.speed import fast_precision, keep_freed_memory
from histo_pl.start import Start, find_start
from histo_pl.storage import replacing_text

log = logging.getLogger(__name__)

# Lightning remarks on what is meant here, or is said better elsewhere.
EXPECTED_WARNINGS = (
    r".*exists and is not empty.*",
    r".*does not have many workers.*",
    r"The number of training batches.*",
    r"`isinstance\(treespec, LeafSpec\)`.*",
    r"The dirpath has changed.*",
    r"Found \d+ module\(s\) in eval mode.*",
)

# Kind and least value of the keys that are typed most.
NUMBERS: dict[str, tuple[Any, int]] = {
    "seed": (int, 0),
    "data.image_size": (int, 1),
    "data.batch_size": (int, 1),
    "data.num_workers": (int, 0),
    "data.prefetch_factor": (int, 1),
    "data.val_fraction": (int | float, 0),
    "data.test_fraction": (int | float, 0),
    "data.folds": (int, 2),
    "data.fold": (int, 0),
    "optim.lr": (int | float, 0),
    "trainer.max_epochs": (int, 1),
}

STEP_KEYS = ("channels_last", "compile", "matmul_precision")  # of the trainer, which are not Lightning's

MATMUL_PRECISIONS = ("highest", "high", "medium")

OmegaConf.register_new_resolver("fast_precision", fast_precision, replace=True)
OmegaConf.register_new_resolver("share_of", lambda share, whole: math.ceil(share * whole), replace=True)


def train(config: DictConfig) -> dict[str, Any]:
    """Train, keep the best epoch's weights, calibrate them, test them, and write the run's folder.

    Args:
        config: As `conf/train.yaml` composes it.

    Returns:
        The contents of results.json.

    Raises:
        UserError: The data, the configuration or the checkpoint to resume from are not as expected.
    """
    started = time.monotonic()
    _check_numbers(config)
    if config.keep_freed_memory:
        keep_freed_memory()
    calibration = Calibration(**config.calibration)
    _quieten_lightning()
    L.seed_everything(config.seed, workers=True, verbose=False)
    data: HistologyDataModule = instantiate(config.data, augment=instantiate(config.augment))
    data.setup()
    spec = _network_spec(config)
    start = find_start(
        weights=config.model.get("weights"),
        resume=config.resume,
        spec=spec,
        data=data,
        source=config.model.get("architecture"),
    )
    findings = data.leak_warnings() + _seen_before(data, start)
    _announce(data, findings)
    classifier = _make_classifier(config, spec, data, start)
    _speed_up(config.trainer, classifier.network)
    history = History()
    trainer = _make_trainer(config, [history, CollapseWarning(), EpochSeeds(config.seed)])
    folder = _folder(config)
    with kept_files_named(folder, trainer), _open_folder(folder, config, data, trainer):
        embeddings = _embed(config, data, classifier, trainer, start)
        keeper = _fit(config, trainer, classifier, data, history)
        logits = _logits(trainer, classifier, data, keeper.best_model_path)
        decision = _decide(calibration, data, logits["val"])
        tested = score(data, "test", logits["test"], decision)
        results: dict[str, Any] = judge(tested, decision) | _facts(trainer, classifier, history, keeper)
        results |= {"warnings": findings, "embeddings": embeddings}
        if trainer.is_global_zero:
            scores: dict[Part, Scores] = {"val": score(data, "val", logits["val"], decision), "test": tested}
            baseline = colour_baseline(data, tested) if config.colour_baseline else None
            results["colour_only"] = baseline and baseline.summary()
            results["run"]["seconds"] = round(time.monotonic() - started, 1)
            _write(config, data, results, scores, baseline, history)
            _log_test(trainer, results)
            update_facts(Path(keeper.best_model_path), **asdict(decision), finished=True)  # last: all else is there
            _report(results, data)
    return without_nan(results)


@contextmanager
def _open_folder(folder: Path, config: DictConfig, data: HistologyDataModule, trainer: L.Trainer) -> Iterator[None]:
    """Take the run's folder, and write into it what is known before the training."""
    if not trainer.is_global_zero:
        yield
        return
    with taken(folder, config.resume):
        with replacing_text(folder / "config.yaml") as stream:
            stream.write(OmegaConf.to_yaml(config, resolve=True))
        data.write_split(folder / "split.csv")
        yield


def _check_numbers(config: DictConfig) -> None:
    """Refuse what would end in a traceback deep inside PyTorch: a word, or a number too small."""
    for key, (kind, least) in NUMBERS.items():
        value = OmegaConf.select(config, key)
        if value is not None and (
            not isinstance(value, kind) or isinstance(value, bool) or not least <= value < math.inf
        ):
            whole = "a whole number" if kind is int else "a number"
            raise UserError(f"{key} is not as expected. Expected {whole} of at least {least}. Received: {value}")


def _quieten_lightning() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it counts its tries; the error says enough
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)


def _network_spec(config: DictConfig) -> dict[str, Any]:
    """What builds the network: the weights to start from, and which of them learn, have no part in it."""
    spec: Any = OmegaConf.to_container(config.model, resolve=True)
    absent = ("weights", "trainable", *(["stain"] if spec["stain"] is None else []))
    spec = {key: value for key, value in spec.items() if key not in absent}
    return resolve_spec(spec, config.data.image_size)


def _make_classifier(
    config: DictConfig, spec: Mapping[str, Any], data: HistologyDataModule, start: Start
) -> TileClassifier:
    facts = data.facts()
    own = {data.hashes[path]: part for path, part in data.parts.items() if part != "test"}
    trainable: Any = config.model.get("trainable", ALL)
    classifier = TileClassifier(
        network=spec,
        image_size=data.image_size,
        classes=[data.negative_class, data.positive_class],
        data=facts if start.pretrained_on is None else facts | {"pretrained_on": start.pretrained_on},
        resize=RESIZE,
        seen=dict(start.seen) | own,
        optimizer=instantiate(config.optim),
        scheduler=instantiate(config.get("scheduler")),
        trainable=trainable,
        pos_weight=_pos_weight(config.pos_weight, facts["parts"]["train"]),
    )
    if start.state is not None:
        classifier.network.load_state_dict(classifier.network.state_dict() | dict(start.state))
    return classifier


def _speed_up(trainer: DictConfig, network: nn.Module) -> None:
    """Choose how the step's arithmetic is carried out, which Lightning leaves to PyTorch."""
    if trainer.matmul_precision not in MATMUL_PRECISIONS:
        raise UserError(
            f"trainer.matmul_precision is unknown. Expected one of {', '.join(MATMUL_PRECISIONS)}. "
            f"Received: {trainer.matmul_precision}"
        )
    torch.set_float32_matmul_precision(trainer.matmul_precision)
    if trainer.channels_last:
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if trainer.compile:
        log.info("Compiling the network: the first batches of training and of validation take up to a minute.")
        network.compile()


def _pos_weight(wanted: float | str | None, counts: Mapping[str, int]) -> float | None:
    if wanted == "balanced":
        return (counts["tiles"] - counts["malignant"]) / counts["malignant"]
    if wanted is not None and (not isinstance(wanted, int | float) or not 0 < wanted < math.inf):
        raise UserError(f"pos_weight is not as expected. Expected a number above 0, or balanced. Received: {wanted}")
    return wanted


def _embed(
    config: DictConfig, data: HistologyDataModule, classifier: TileClassifier, trainer: L.Trainer, start: Start
) -> dict[str, Any] | None:
    """Let a frozen encoder see every tile once, and train the head on what it made of them."""
    embedder: Embedder | None = instantiate(config.embeddings)
    if embedder is None:
        return None
    backbone = classifier.network.backbone
    if not isinstance(backbone, EncoderWithHead) or any(p.requires_grad for p in backbone.encoder.parameters()):
        raise UserError(
            f"Only what a frozen encoder makes of the tiles can be kept. Expected a pretrained model such as "
            f"model=efficientnet_lite0, and model.trainable=head. "
            f"Received: model={config.model.name} model.trainable={config.model.get('trainable', ALL)}"
        )
    if data.cache != "none":
        raise UserError(
            f"Embeddings are kept instead of decoded tiles. Expected data.cache=none. Received: data.cache={data.cache}"
        )
    if trainer.world_size > 1:
        raise UserError(
            f"A head on kept embeddings takes seconds on one device. Expected trainer.devices=1. "
            f"Received: {trainer.world_size} processes"
        )
    encode = nn.Sequential(classifier.network.preprocessing, backbone.encoder).to(trainer.strategy.root_device)
    settings = OmegaConf.to_yaml(config.augment, resolve=True)
    features, facts = embedder.embed(data, encode, classifier.hparams["network"], settings)
    data.features = features
    if start.state is None or "backbone.head.weight" not in start.state:
        backbone.standardize.fit(torch.cat([features[path] for path in data.paths("train")]))
    return facts


def _seen_before(data: HistologyDataModule, start: Start) -> list[str]:
    tests = [path for path, part in data.parts.items() if part == "test"]
    seen = [path for path in tests if data.hashes[path] in start.seen]
    if not seen:
        return []
    return [
        f"{len(seen)} of the {len(tests)} test tiles had a part in the training of the weights that this run starts "
        f"from, which flatters every figure (such as {seen[0]})."
    ]


def _fit(
    config: DictConfig, trainer: L.Trainer, classifier: TileClassifier, data: HistologyDataModule, history: History
) -> BestCheckpoint:
    """Train, and return the callback that kept the best weights."""
    keeper = _keeper(trainer)
    with _lightning_errors():
        trainer.fit(classifier, data, ckpt_path=config.resume, weights_only=True)
    if not history.epochs:
        raise UserError(
            f"Nothing was trained. Expected trainer.max_epochs of at least 1. Received: {trainer.max_epochs}"
        )
    return keeper


def _folder(config: DictConfig) -> Path:
    return Path(os.path.relpath(config.run_dir))


def _make_trainer(config: DictConfig, watchers: list[L.Callback]) -> L.Trainer:
    callbacks = [instantiate(callback) for callback in config.callbacks.values() if callback]
    if not config.trainer.enable_progress_bar:  # Lightning refuses a bar that is both given and switched off
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    options = {key: value for key, value in config.trainer.items() if key not in STEP_KEYS}
    with _lightning_errors():
        trainer: L.Trainer = instantiate(
            options,
            callbacks=callbacks + watchers,
            logger=instantiate(config.logger),
            default_root_dir=config.run_dir,
            plugins=[WholeCheckpoints()],
        )
    log.info("Device: %s, precision %s.", trainer.strategy.root_device, trainer.precision)
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
            if "gpu backend" in reason:
                extra = " Without a GPU take trainer=auto, or experiment=fast_cpu instead of fast_gpu."
            raise UserError(f"Lightning cannot run with this trainer, logger or callbacks: {reason}{extra}") from error
        raise


def _keeper(trainer: L.Trainer) -> BestCheckpoint:
    """Return the callback that keeps the best weights, which the test needs."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, BestCheckpoint):
            return callback
    raise UserError("The test needs the best epoch's weights. Expected callbacks.best. Received: none")


def _logits(
    trainer: L.Trainer, classifier: TileClassifier, data: HistologyDataModule, checkpoint: str
) -> dict[Part, dict[str, float]]:
    """Answer for the validation and the test tiles with the kept weights, on all devices together."""
    loaders = [data.val_dataloader(), data.test_dataloader()]
    answers: Any = trainer.predict(classifier, loaders, ckpt_path=checkpoint, weights_only=True)
    val, test = ({path: logit for batch in batches for path, logit in batch.items()} for batches in answers)
    return {"val": _gather(val), "test": _gather(test)}


def _gather(own: dict[str, float]) -> dict[str, float]:
    """Join what this process and all others found."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return own
    shares: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, own)
    return {path: logit for share in shares for path, logit in share.items()}


def _decide(calibration: Calibration, data: HistologyDataModule, logits: Mapping[str, float]) -> Decision:
    """Choose temperature and threshold on the validation tiles."""
    tiles = score(data, "val", logits, Decision())
    return calibration.choose(np.array([logits[str(data.root / path)] for path in tiles.path]), tiles.malignant)


def _facts(trainer: L.Trainer, classifier: TileClassifier, history: History, keeper: BestCheckpoint) -> dict[str, Any]:
    best = history.best(str(keeper.monitor), keeper.mode)
    folder = Path(os.path.relpath(str(keeper.dirpath)))
    return {
        "validation": {"epoch": int(best["epoch"]) + 1} | _metrics_of("val", best),
        "epochs": len(history.epochs),
        "collapsed": CollapseWarning.is_collapsed(best["val/spread"]),
        "parameters": sum(p.numel() for p in classifier.network.parameters()),
        "data": classifier.hparams["data"],
        "run": {
            "folder": str(folder),
            "checkpoint": str(folder / Path(keeper.best_model_path).name),
            "device": str(trainer.strategy.root_device),
            "precision": str(trainer.precision),
            "processes": trainer.world_size,
        },
    }


def _metrics_of(stage: str, metrics: Any) -> dict[str, float | None]:  # noqa: ANN401
    """Pick a stage's metrics; one that is undefined is None, as JSON knows no NaN."""
    values = {name.removeprefix(f"{stage}/"): float(metrics[name]) for name in metrics if name.startswith(f"{stage}/")}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _write(
    config: DictConfig,
    data: HistologyDataModule,
    results: dict[str, Any],
    scores: Mapping[Part, Scores],
    baseline: Scores | None,
    history: History,
) -> None:
    folder, tested = _folder(config), scores["test"]
    further = (
        {}
        if baseline is None
        else {"colour_only": dict(zip(baseline.path.tolist(), baseline.probability.tolist(), strict=True))}
    )
    decision = Decision(**results["decision"])
    write_predictions(folder / "predictions.csv", data, scores, decision, {}, further)
    history.write(folder / "metrics.csv")
    name = results["data"]["name"]
    plots.save({"curves": plots.plot_curves(history.epochs, results["validation"]["epoch"] - 1, name)}, folder)
    report = Report(
        title=f"{name}: test of a training run",
        results=results,
        scores=tested,
        root=data.root,
        columns=data.values_of_columns(tested.path.tolist()),
        notes=_notes(results),
        epochs=history.epochs,
        settings=OmegaConf.to_yaml(config),
    )
    write_results(folder, report)


def _notes(results: Mapping[str, Any]) -> list[str]:
    """What must be read before the figures."""
    notes = [*results["warnings"], *remarks(results)]
    if results["collapsed"]:
        notes.append("The network had collapsed: these figures are those of a constant.")
    return notes


def _log_test(trainer: L.Trainer, results: Mapping[str, Any]) -> None:
    """Give the test's metrics to the loggers; metrics.csv, one row an epoch, has no place for them."""
    for logger in trainer.loggers:
        if not isinstance(logger, CSVLogger):
            metrics = {f"test/{name}": results["test"][name] for name in NAMES if results["test"][name] is not None}
            logger.log_metrics(metrics, step=trainer.global_step)
            logger.save()


@rank_zero_only
def _announce(data: HistologyDataModule, findings: list[str]) -> None:
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
    for finding in findings:
        log.warning("Warning: %s", finding)


def _report(results: Mapping[str, Any], data: HistologyDataModule) -> None:
    run = results["run"]
    log.info("")
    log.info("Test with the weights of epoch %d:", results["validation"]["epoch"])
    log_results(results)
    for note in _notes(results):
        log.info("%s", note)
    log.info("Everything is in %s (%.0f s); look at report.html. To ask for an opinion:", run["folder"], run["seconds"])
    tile = data.part_paths("test")[0]
    log.info("")
    log.info("  python predict.py %s %s", _argument("ckpt", run["checkpoint"]), _argument("img", tile))


def _argument(key: str, value: str | Path) -> str:
    return f"{key}={shlex.quote(str(value))}"
