"""Every file of conf/ is composed, instantiated and commented."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from histo_pl.evaluation.calibration import Calibration
from histo_pl.models import build_network
from histo_pl.models.pretrained import resolve_model_config
from tests.conftest import ROOT, compose_config

CONF = ROOT / "conf"
CHOICES = sorted(
    f"{file.parent.name}={file.stem}" for file in CONF.glob("*/*.yaml") if file.parent.name != "sweep"
)  # spaces of a search are no groups
NEEDS = {"logger=tensorboard": "tensorboard", "logger=wandb": "wandb"}


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_makes_what_it_names(choice: str, tmp_path: Path) -> None:
    from histo_pl.cli.build import ARITHMETIC  # the module has the resolvers that the configuration uses

    if choice in NEEDS:
        pytest.importorskip(NEEDS[choice])
    config = compose_config("train", choice, f"run_dir={tmp_path}", "data.root=x")
    group = choice.partition("=")[0]
    OmegaConf.to_container(config, resolve=True)
    if group == "trainer":
        config.trainer.accelerator = "cpu"  # no GPU is here
        config.trainer.devices = 1
        config.trainer = {key: value for key, value in config.trainer.items() if key not in ARITHMETIC}
    if group == "model":
        model_config: Any = OmegaConf.to_container(config.model, resolve=True)
        parts = {key: value for key, value in model_config.items() if key not in ("weights", "trainable")}
        with torch.device("meta"):  # some have a billion weights
            build_network(resolve_model_config(parts, config.data.image_size))
    elif group in ("experiment", "debug"):
        instantiate(config.data, augment=instantiate(config.augment))
        Calibration(**config.calibration)
    elif group == "callbacks":
        assert all(instantiate(callback) for callback in config.callbacks.values())
    elif choice != "logger=wandb":  # it would log in
        assert instantiate(config[group]) is not None


@pytest.mark.parametrize("file", sorted(CONF.rglob("*.yaml")), ids=lambda file: str(file.relative_to(CONF)))
def test_every_key_has_a_comment(file: Path) -> None:
    """A leaf is commented on its line, a section on its line or by its leaves."""
    text = file.read_text(encoding="utf-8")
    assert text.startswith("# "), "a first line that says what the file is for"
    uncommented, in_block = [], None
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if in_block is not None and (indent > in_block or not line.strip()):
            continue
        in_block = indent if re.search(r": \|", line) else None
        leaf = re.match(r"\s*(- )?([\w]+): *[^#\s&*]", line)
        if leaf and leaf[2] not in ("_target_", "override") and "#" not in line and "override /" not in line:
            uncommented.append(line)
    assert not uncommented


def test_the_seed_experiment_is_the_notebook() -> None:
    config = compose_config("train", "experiment=seed", "data.root=x")
    assert (config.data.image_size, config.data.batch_size, config.trainer.max_epochs) == (512, 32, 2)
    assert (config.optim.lr, config.optim.eps, config.optim.base_fan_in) == (1e-3, 1e-7, None)
    assert config.optim.keras_eps
    chosen = compose_config("train", "experiment=seed", "data=breakhis", "data.root=x")
    assert chosen.data.name == "BreakHis"


@pytest.mark.parametrize("name", ["train", "evaluate", "predict"])
def test_the_composed_configuration_can_be_shown_without_a_run(name: str, tmp_path: Path) -> None:
    """As --cfg job --resolve does: no folder is made, none is needed."""
    config = compose_config(name)
    text = OmegaConf.to_yaml(config, resolve=True)
    assert name == "predict" or "DAY/TIME" in text


@pytest.mark.parametrize("space", sorted(file.stem for file in (CONF / "sweep").glob("*.yaml")))
def test_every_space_is_of_keys_that_train_has(space: str) -> None:
    pytest.importorskip("optuna")
    from histo_pl.cli.sweep import read_space

    recipe = ["experiment=linear_probe"] if space == "probe" else []
    config = compose_config("train", *recipe, "data.root=x")
    for key, distribution in read_space(space).items():
        assert OmegaConf.select(config, key, throw_on_missing=True) is not None
        value = distribution.choices[0] if hasattr(distribution, "choices") else distribution.low
        compose_config("train", *recipe, f"{key}={value}")


def test_the_launcher_of_slurm_composes() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        launcher = compose("train", ["hydra/launcher=slurm"], return_hydra_config=True).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher") and launcher.timeout_min == 240
