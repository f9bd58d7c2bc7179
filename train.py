"""Train a classifier on a folder of tiles: python train.py data=folder data.root=DIR. See --help."""

import hydra
from omegaconf import DictConfig

from histo_pl.cli.command_line import fast_imports
from histo_pl.cli.program import job, run_program
from histo_pl.cli.resume import go_on_with_sweep


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float | None:
    """Train as `conf/train.yaml` says; return the validation loss, at least 0, or None for a failed job of a sweep."""
    with job():
        with fast_imports():
            from histo_pl.cli.auto_resume import follow_auto
            from histo_pl.cli.build import training_arguments
            from histo_pl.cli.own_process import needs_own_process, run_in_own_process
            from histo_pl.training.run import run_training

        if needs_own_process(config):
            results = run_in_own_process(config.run_dir)
        else:
            results = follow_auto(config) or run_training(**training_arguments(config))
        return results["validation"]["loss"]
    return None


if __name__ == "__main__":
    run_program(main, go_on_with_sweep)
