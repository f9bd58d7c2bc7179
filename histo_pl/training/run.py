"""Training: from a data module and a model configuration to a calibrated, tested checkpoint in a folder of its own."""

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from histo_pl.data import HistologyDataModule
from histo_pl.data.hashing import CaseHashes
from histo_pl.errors import UserError
from histo_pl.evaluation.calibration import Calibration
from histo_pl.evaluation.cases import CaseRule
from histo_pl.evaluation.explained import explain_predictions
from histo_pl.evaluation.results import without_nan
from histo_pl.hardware import keep_freed_memory, set_float32_precision
from histo_pl.images import RESIZE
from histo_pl.models.checkpoint import save_checkpoint, update_metadata
from histo_pl.models.evidence import method_for
from histo_pl.models.novelty import NoveltyRule
from histo_pl.signals import CommandLine
from histo_pl.storage import atomic_write_text
from histo_pl.training.answers import Answers, answers_of_features, answers_of_network, logits_of_views
from histo_pl.training.assessment import Assessment, assess, check_case_rule
from histo_pl.training.callbacks import BestCheckpoint, CollapseWarning, EpochSeeding, History
from histo_pl.training.features import Features
from histo_pl.training.initialization import InitialWeights, Model, resolve_initial_weights
from histo_pl.training.linear_probe import LinearProbe
from histo_pl.training.module import TileClassifier
from histo_pl.training.outputs import announce_data, log_summary, log_to_loggers, run_summary, write_outputs
from histo_pl.training.run_files import BEST, CONFIG, LAST
from histo_pl.training.run_folder import claim_run_folder, report_interruption

log = logging.getLogger(__name__)

# Lightning warns of these although they are intended here, or better explained elsewhere.
EXPECTED_WARNINGS = (
    r".*exists and is not empty.*",
    r".*does not have many workers.*",
    r"The number of training batches.*",
    r"`isinstance\(treespec, LeafSpec\)`.*",
    r"The dirpath has changed.*",
    r"Found \d+ module\(s\) in eval mode.*",
    r"The `srun` command is available.*",
)
MATMUL_PRECISIONS = ("highest", "high", "medium")


@dataclass(frozen=True)
class Optimization:
    """The optimizer and the loss.

    Attributes:
        optimizer: Makes the optimizer from the network; None: with `probe`.
        scheduler: Makes the learning-rate schedule from the optimizer and the number of steps; None: constant.
        pos_weight: Weight of a malignant tile in the loss, that of a benign one being 1; `balanced`: as many times as
            there are more benign ones; None: 1.
        probe: Fits a linear probe instead of training by gradient steps.
    """

    optimizer: Callable[[nn.Module], Optimizer] | None = None
    scheduler: Callable[[Optimizer, int], LRScheduler] | None = None
    pos_weight: float | str | None = None
    probe: LinearProbe | None = None


@dataclass(frozen=True)
class Arithmetic:
    """Speed settings of the training step.

    Attributes:
        channels_last: Keep an image's channels side by side in memory.
        compile: Let torch.compile write the network's kernels.
        matmul_precision: Of float32 products and convolutions on a GPU, one of `MATMUL_PRECISIONS`.
        keep_freed_memory: Keep freed memory for the next tensor, see `hardware.keep_freed_memory`.
    """

    channels_last: bool = False
    compile: bool = False
    matmul_precision: str = "highest"
    keep_freed_memory: bool = True


def run_training(
    data: HistologyDataModule,
    model: Model,
    optimization: Optimization,
    make_trainer: Callable[[Sequence[L.Callback]], L.Trainer],
    *,
    run_dir: Path,
    seed: int = 0,
    calibration: Calibration | None = None,
    case_rule: CaseRule | None = None,
    novelty_rule: NoveltyRule | None = None,
    arithmetic: Arithmetic | None = None,
    color_baseline: bool = True,
    explain: str | bool = False,
    notes: Sequence[str] = (),
    resume: str | None = None,
    settings: str = "",
    command_line: CommandLine = lambda *_: None,
) -> dict[str, Any]:
    """Train, keep the best epoch's weights, calibrate them, test them, and write the run's folder.

    Args:
        data: The tiles.
        model: The network.
        optimization: The optimizer and the loss.
        make_trainer: Makes the trainer with further callbacks; its own must include a `BestCheckpoint`.
        run_dir: The run's folder.
        seed: Decides initial weights, order and augmentation, from 0 to 2**32 - 1.
        calibration: The rules of temperature, threshold and band; None: the defaults.
        case_rule: The truth and the score of a case, its threshold yet to be chosen; None: the defaults.
        novelty_rule: The share of tiles that the limit of novelty may refuse; None: no novelty.
        arithmetic: Speed settings; None: the defaults.
        color_baseline: Compute the baseline from colour alone too.
        explain: Show evidence maps of the worst mistakes in the report: see `evidence.method_for`; False: none.
        notes: Warnings to log and to keep in the results.
        resume: A last.ckpt to go on from, or None.
        settings: The configuration as YAML, for config.yaml and the report.
        command_line: Writes this run's command with some keys changed, for the message of an interrupted run.

    Returns:
        The contents of results.json.

    Raises:
        UserError: The data, the configuration or the checkpoint to resume from are not as expected.
    """
    started = time.monotonic()
    arithmetic, calibration = arithmetic or Arithmetic(), calibration or Calibration()
    case_rule = case_rule or CaseRule()
    _prepare_process(arithmetic, seed)
    data.setup()
    check_case_rule(case_rule, data)
    initial = resolve_initial_weights(model, data, resume, needs_optimizer=optimization.probe is None)
    data.resume_at(initial.epochs)
    findings = [*notes, *data.leak_warnings(), *_tested_before(data, initial)]
    announce_data(data, findings)
    classifier = _make_classifier(model, optimization, data, initial)
    method_for(classifier.network, explain)
    _set_arithmetic(arithmetic, classifier.network)
    history = History()
    trainer = make_trainer([history, CollapseWarning(), EpochSeeding(seed)])
    run = _Run(trainer, classifier, data, history, _best_checkpoint(trainer))
    _check_epochs(trainer, initial)
    with report_interruption(run_dir, trainer, command_line), _open_folder(run_dir, settings, resume, data, trainer):
        answers, features = _train(run, optimization.probe, initial, resume, wants_novelty=novelty_rule is not None)
        logits_tta = logits_of_views(trainer, classifier, data) if calibration.tta else None
        assessed = assess(
            data, answers, logits_tta, calibration, case_rule, novelty_rule, color_baseline=color_baseline
        )
        results = assessed.results() | run_summary(trainer, classifier, history, run.best, data)
        results |= {"warnings": findings, "embeddings": features and features.summary()}
        if trainer.is_global_zero:
            results["run"]["seconds"] = round(time.monotonic() - started, 1)
            _finish(run, results, assessed, explain, run_dir, settings)
    return without_nan(results)


@dataclass(frozen=True)
class _Run:
    trainer: L.Trainer
    classifier: TileClassifier
    data: HistologyDataModule
    history: History
    best: BestCheckpoint


def _finish(
    run: _Run, results: dict[str, Any], assessed: Assessment, wanted: str | bool, run_dir: Path, settings: str
) -> None:
    """Explain the worst mistakes, write and log all results, and mark the checkpoint as finished, last."""
    network = run.classifier.network.eval().requires_grad_(False)
    shown = assessed.predictions[assessed.reported]
    explained = explain_predictions(network, shown, run.data.root, run.data.image_size, RESIZE, wanted)
    results["evidence"] = dict(explained.check) or None
    write_outputs(run_dir, settings, run.data, results, assessed, run.history, explained)
    log_to_loggers(run.trainer, results)
    update_metadata(Path(run.best.best_model_path), **assessed.metadata(), finished=True)
    log_summary(results, run.data)


def _train(
    run: _Run, probe: LinearProbe | None, initial: InitialWeights, resume: str | None, *, wants_novelty: bool
) -> tuple[Answers, Features | None]:
    """Train, and ask the best weights about all tiles; return the features too, where the encoder is frozen."""
    if probe is None:
        _train_epochs(run, resume)
        best = str(run.best.best_model_path)
        return answers_of_network(run.trainer, run.classifier, run.data, best, wants_novelty=wants_novelty), None
    features = _fit_linear_probe(run, probe, initial)
    return answers_of_features(features, run.data, run.classifier, wants_novelty=wants_novelty), features


def _prepare_process(arithmetic: Arithmetic, seed: int) -> None:
    if arithmetic.matmul_precision not in MATMUL_PRECISIONS:
        raise UserError(
            f"trainer.matmul_precision is unknown. Expected one of {', '.join(MATMUL_PRECISIONS)}. "
            f"Received: {arithmetic.matmul_precision}"
        )
    if arithmetic.keep_freed_memory:
        keep_freed_memory()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it counts its tries; the error says enough
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)
    L.seed_everything(seed, workers=True, verbose=False)


def _tested_before(data: HistologyDataModule, initial: InitialWeights) -> list[str]:
    """Warn of test tiles that trained the initial weights."""
    tests = [path for path, split in data.split_of.items() if split == "test"]
    seen = [path for path in tests if data.hashes[path] in initial.training_hashes]
    if not seen:
        return []
    return [
        f"{len(seen)} of the {len(tests)} test tiles had a part in the training of the weights that this run starts "
        f"from: every figure is optimistically biased (such as {seen[0]})."
    ]


def _make_classifier(
    model: Model, optimization: Optimization, data: HistologyDataModule, initial: InitialWeights
) -> TileClassifier:
    summary = data.summary()
    hashes = {data.hashes[path]: split for path, split in data.split_of.items() if split != "test"}
    classifier = TileClassifier(
        network=model.config,
        image_size=data.image_size,
        classes=[data.negative_class, data.positive_class],
        data=summary if initial.pretrained_on is None else summary | {"pretrained_on": initial.pretrained_on},
        resize=RESIZE,
        training_hashes=dict(initial.training_hashes) | hashes,
        training_cases=[*map(dict, initial.training_cases), *_training_cases(data, summary["split"])],
        optimizer=optimization.optimizer,
        scheduler=optimization.scheduler,
        trainable=model.trainable,
        pos_weight=_pos_weight(optimization.pos_weight, summary["parts"]["train"], data.balanced),
    )
    if initial.state is not None:
        classifier.network.load_state_dict(classifier.network.state_dict() | dict(initial.state))
    return classifier


def _training_cases(data: HistologyDataModule, salt: str) -> list[dict[str, Any]]:
    """Hash the cases of training and validation; none where cases are unknown."""
    if not data.has_cases:
        return []
    split_of = {tile.case: data.split_of[tile.path] for tile in data.tiles if data.split_of[tile.path] != "test"}
    return [asdict(CaseHashes.of(split_of, salt))]


def _pos_weight(wanted: float | str | None, counts: Mapping[str, int], balanced: bool) -> float | None:
    if wanted == "balanced" and balanced:
        raise UserError(
            "The rarer class would be made up for twice. Expected pos_weight=balanced or data.balanced=true. "
            "Received: both"
        )
    if wanted == "balanced":
        return (counts["tiles"] - counts["malignant"]) / counts["malignant"]
    if wanted is not None and (not isinstance(wanted, int | float) or not 0 < wanted < math.inf):
        raise UserError(f"pos_weight is not as expected. Expected a number above 0, or balanced. Received: {wanted}")
    return wanted


def _set_arithmetic(arithmetic: Arithmetic, network: nn.Module) -> None:
    set_float32_precision(arithmetic.matmul_precision)
    if arithmetic.channels_last:
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if arithmetic.compile:
        log.info("Compiling the network: the first batches of training and of validation take up to a minute.")
        network.compile()


def _best_checkpoint(trainer: L.Trainer) -> BestCheckpoint:
    """Return the callback that keeps the best weights, which the test needs."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, BestCheckpoint):
            return callback
    raise UserError("The test needs the best epoch's weights. Expected callbacks.best. Received: none")


def _check_epochs(trainer: L.Trainer, initial: InitialWeights) -> None:
    if trainer.max_epochs is not None and -1 < trainer.max_epochs < initial.epochs:
        raise UserError(
            f"The run to go on with has trained {initial.epochs} epochs already. Expected trainer.max_epochs of at "
            f"least {initial.epochs}. Received: trainer.max_epochs={trainer.max_epochs}"
        )


@contextmanager
def _open_folder(
    folder: Path, settings: str, resume: str | None, data: HistologyDataModule, trainer: L.Trainer
) -> Iterator[None]:
    """Claim the run's folder, and write into it what is known before the training."""
    if not trainer.is_global_zero:
        yield
        return
    with claim_run_folder(folder, resume):
        with atomic_write_text(folder / CONFIG) as stream:
            stream.write(settings)
        data.write_split(folder / "split.csv")
        data.checked.write_skipped(folder / "skipped.csv")
        yield


def _train_epochs(run: _Run, resume: str | None) -> None:
    """Train, with Lightning's loop."""
    with lightning_errors():
        run.trainer.fit(run.classifier, run.data, ckpt_path=resume, weights_only=True)
    if not run.history.epochs:
        raise UserError(
            f"Nothing was trained. Expected trainer.max_epochs of at least 1. Received: {run.trainer.max_epochs}"
        )


def _fit_linear_probe(run: _Run, probe: LinearProbe, initial: InitialWeights) -> Features:
    """Fit the head on features, and keep both checkpoints."""
    trainer, classifier, data = run.trainer, run.classifier, run.data
    if trainer.world_size > 1:
        raise UserError(
            f"A linear probe takes seconds on one device. Expected trainer.devices=1. "
            f"Received: {trainer.world_size} processes"
        )
    features = probe.extract(data, classifier, trainer.strategy.root_device)
    has_head = initial.state is not None and "backbone.head.weight" in initial.state
    run.history.epochs = [probe.fit(features, data, classifier, keep_scale=has_head)]
    folder = Path(str(run.best.dirpath))
    run.best.best_model_path = str(folder / BEST)
    for name in (BEST, LAST):
        save_checkpoint(dict(classifier.hparams), classifier.state_dict(), folder / name)
    return features


@contextmanager
def lightning_errors() -> Iterator[None]:
    """Report the user's mistakes that Lightning finds, such as a GPU that is not there, in one line.

    Raises:
        UserError: Lightning refuses the trainer, the logger or the callbacks.
    """
    try:
        yield
    except (MisconfigurationException, ModuleNotFoundError) as error:
        extra = " Extras are installed with pip install -e '.[NAME]'." if isinstance(error, ImportError) else ""
        reason = " ".join(str(error).split())
        if "gpu backend" in reason:
            extra = " Without a GPU take trainer=auto, or experiment=fast_cpu instead of fast_gpu."
        raise UserError(f"Lightning cannot run with this trainer, logger or callbacks: {reason}{extra}") from error
