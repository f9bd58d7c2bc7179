"""Test a checkpoint on a folder of tiles: python evaluate.py ckpt=latest data=folder data.root=DIR. See --help."""

import hydra
from omegaconf import DictConfig

from histo_pl.cli.command_line import fast_imports
from histo_pl.cli.program import job, run_program


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(config: DictConfig) -> None:
    """Evaluate as `conf/evaluate.yaml` and the command line say."""
    with job():
        with fast_imports():
            from histo_pl.cli.build import evaluation_arguments
            from histo_pl.evaluation.run import evaluate
            from histo_pl.hardware import keep_freed_memory

        if config.keep_freed_memory:
            keep_freed_memory()
        evaluate(**evaluation_arguments(config))


if __name__ == "__main__":
    run_program(main)
