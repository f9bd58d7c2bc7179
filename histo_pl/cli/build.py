"""Objects from a composed configuration: the one place where a `DictConfig` is unpacked."""

import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import get_class, instantiate
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from omegaconf import DictConfig, OmegaConf

from histo_pl.cli.program import command_line
from histo_pl.cli.resume import compare_with_interrupted_run, keep_precision, resolve_resume
from histo_pl.errors import UserError
from histo_pl.evaluation.calibration import Calibration
from histo_pl.evaluation.cases import case_rule
from histo_pl.models.novelty import NoveltyRule
from histo_pl.models.pretrained import resolve_model_config
from histo_pl.training.callbacks import AtomicCheckpointIO
from histo_pl.training.freezing import ALL
from histo_pl.training.initialization import Model
from histo_pl.training.linear_probe import LinearProbe, LogisticRegression
from histo_pl.training.run import Arithmetic, Optimization, lightning_errors

log = logging.getLogger(__name__)

# Type and least value of the keys that are typed most.
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
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
ARITHMETIC = ("channels_last", "compile", "matmul_precision")  # keys of the trainer that are not Lightning's
TASKS = "SLURM_NTASKS"  # in the environment of a job: its processes
UNBUILT = ("weights", "trainable")  # keys of the model that do not build the network


def training_arguments(config: DictConfig) -> dict[str, Any]:
    """Build the arguments of `training.run.run_training`.

    Args:
        config: As `conf/train.yaml` composes it.

    Returns:
        The arguments by name.

    Raises:
        UserError: A setting is not as expected.
    """
    check_numbers(config)
    config.resume = resolve_resume(config.resume)
    keep_precision(config)
    notes = compare_with_interrupted_run(config)
    calibration = Calibration(**config.calibration)
    model = _model(config)
    return {
        "data": instantiate(config.data, augment=instantiate(config.augment)),
        "model": model,
        "optimization": _optimization(config),
        "make_trainer": lambda callbacks: make_trainer(config, callbacks),
        "run_dir": Path(os.path.relpath(config.run_dir)),
        "seed": config.seed,
        "calibration": calibration,
        "case_rule": case_rule(config.case_truth, config.case_score),
        "novelty_rule": _novelty_rule(config.novelty),
        "arithmetic": Arithmetic(
            **{key: config.trainer[key] for key in ARITHMETIC}, keep_freed_memory=config.keep_freed_memory
        ),
        "color_baseline": config.colour_baseline,
        "explain": config.explain,
        "notes": notes,
        "resume": config.resume,
        "settings": OmegaConf.to_yaml(config, resolve=True),
        "command_line": command_line,
    }


def _novelty_rule(novelty: Any) -> NoveltyRule | None:  # noqa: ANN401
    if novelty is None or novelty is False:
        return None
    if novelty is not True and not isinstance(novelty, DictConfig):
        raise UserError(f"novelty is not as expected. Expected false, or novelty.false_alarm=0.01. Received: {novelty}")
    options: Any = {} if novelty is True else OmegaConf.to_container(novelty)
    return NoveltyRule(**options)


def evaluation_arguments(config: DictConfig) -> dict[str, Any]:
    """Build the arguments of `evaluation.run.evaluate`.

    Args:
        config: As `conf/evaluate.yaml` composes it.

    Returns:
        The arguments by name.

    Raises:
        UserError: A setting is not as expected.
    """
    check_numbers(config)
    data: Any = OmegaConf.to_container(config.data, resolve=True)
    absent = ("_target_", "image_size", "root")  # the image size is the checkpoint's
    return {
        "checkpoint": config.ckpt,
        "root": data["root"],
        "split": config.split,
        "device": config.device,
        "tta": config.tta,
        "seen_cases": config.seen_cases,
        "explain": config.explain,
        "run_dir": config.run_dir,
        "settings": OmegaConf.to_yaml(config, resolve=True),
        "open_data": get_class(data["_target_"]),
        **{key: value for key, value in data.items() if key not in absent},
    }


def check_numbers(config: DictConfig) -> None:
    """Refuse a word or a number out of range, which would end in a traceback deep inside PyTorch.

    Args:
        config: Composed; `NUMBERS` lists the keys that are checked.

    Raises:
        UserError: A value is no number of its kind, or too small.
    """
    for key, (kind, least) in NUMBERS.items():
        value = OmegaConf.select(config, key)
        if value is not None and (
            not isinstance(value, kind) or isinstance(value, bool) or not least <= value < math.inf
        ):
            whole = "a whole number" if kind is int else "a number"
            raise UserError(f"{key} is not as expected. Expected {whole} of at least {least}. Received: {value}")


def _model(config: DictConfig) -> Model:
    model: Any = OmegaConf.to_container(config.model, resolve=True)
    absent = (*UNBUILT, *(["stain"] if model["stain"] is None else []))
    model_config = {key: value for key, value in model.items() if key not in absent}
    return Model(
        config=resolve_model_config(model_config, config.data.image_size),
        weights=model.get("weights"),
        architecture=model.get("architecture"),
        trainable=model.get("trainable", ALL),
    )


def _optimization(config: DictConfig) -> Optimization:
    optimizer, extractor = instantiate(config.optim), instantiate(config.embeddings)
    if extractor is None and not isinstance(optimizer, LogisticRegression):
        return Optimization(optimizer, instantiate(config.get("scheduler")), config.pos_weight)
    if extractor is None or not isinstance(optimizer, LogisticRegression):
        raise UserError(
            f"A linear probe takes both embeddings and optim=lbfgs. Expected experiment=linear_probe; or, to train the "
            f"head by gradient steps, model.trainable=head without embeddings. "
            f"Received: optim._target_={config.optim._target_}, embeddings {'not set' if extractor is None else 'set'}"
        )
    if config.data.cache != "none":
        raise UserError(
            f"Embeddings are kept instead of decoded tiles. Expected data.cache=none. "
            f"Received: data.cache={config.data.cache}"
        )
    probe = LinearProbe(extractor, optimizer, OmegaConf.to_yaml(config.augment, resolve=True))
    return Optimization(pos_weight=config.pos_weight, probe=probe)


def make_trainer(config: DictConfig, callbacks: Sequence[L.Callback]) -> L.Trainer:
    """Build Lightning's trainer with the callbacks and loggers of the configuration.

    Args:
        config: As `conf/train.yaml` composes it.
        callbacks: Further ones.

    Returns:
        The trainer.

    Raises:
        UserError: Lightning refuses a setting, SLURM's tasks are not the processes, or a sweep would use several.
    """
    configured = [instantiate(callback) for callback in config.callbacks.values() if callback]
    if not config.trainer.enable_progress_bar:  # Lightning refuses a bar that is both given and switched off
        configured = [callback for callback in configured if not isinstance(callback, ProgressBar)]
    options = {key: value for key, value in config.trainer.items() if key not in ARITHMETIC}
    with lightning_errors(), _cause_of_instantiation():
        trainer: L.Trainer = instantiate(
            options,
            callbacks=[*configured, *callbacks],
            logger=instantiate(config.logger),
            default_root_dir=config.run_dir,
            plugins=[AtomicCheckpointIO(), *_cluster()],
        )
    _check_processes(trainer.world_size)
    if trainer.precision not in PRECISIONS:
        raise UserError(
            f"trainer.precision is not as expected. Expected one of {', '.join(PRECISIONS)}: weights are float32. "
            f"Received: {config.trainer.precision}"
        )
    log.info("Device: %s, precision %s.", trainer.strategy.root_device, trainer.precision)
    return trainer


def _cluster() -> list[ClusterEnvironment]:
    """Let Lightning start the processes where SLURM has started one, and never requeue: `signals` does it already."""
    if not SLURMEnvironment.detect():
        return []
    return [LightningEnvironment() if os.environ[TASKS] == "1" else SLURMEnvironment(auto_requeue=False)]


def _check_processes(count: int) -> None:
    """Refuse tasks of SLURM that are not the processes of the run, and several processes that a sweep was not told."""
    tasks = os.environ[TASKS] if SLURMEnvironment.detect() else "1"
    if tasks not in ("1", str(count)):
        raise UserError(
            f"SLURM has started another number of processes than the trainer uses. Expected a task each, or one task: "
            f"with trainer=ddp, --ntasks-per-node as trainer.devices and --nodes as trainer.num_nodes. "
            f"Received: {tasks} tasks for {count} processes"
        )
    in_sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if in_sweep and count > 1:
        raise UserError(
            f"A sweep must know that its jobs use several processes. Expected trainer=ddp, or a number as "
            f"trainer.devices. Received: {count} processes"
        )


@contextmanager
def _cause_of_instantiation() -> Iterator[None]:
    """Raise the error that Hydra wraps, as `lightning_errors` expects it."""
    try:
        yield
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, ValueError | TypeError):  # such as an unknown precision, strategy or key
            raise MisconfigurationException(str(cause)) from cause
        raise cause from cause.__cause__
