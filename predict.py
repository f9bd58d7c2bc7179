"""Ask a trained model about images: python predict.py ckpt=latest img=FILE. See --help."""

import sys
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from histo_pl.cli.command_line import fast_imports
from histo_pl.cli.program import command_line, job, run_program


@hydra.main(version_base="1.3", config_path="conf", config_name="predict")
def main(config: DictConfig) -> None:
    """Predict as `conf/predict.yaml` and the command line say."""
    with job():
        with fast_imports():
            from histo_pl.inference.run import predict

        arguments: Any = OmegaConf.to_container(config)
        if predict(**arguments, command_line=command_line):
            sys.exit(1)


if __name__ == "__main__":
    run_program(main)
