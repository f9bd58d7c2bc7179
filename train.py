"""Train a classifier on a folder of tiles: python train.py data=folder data.root=DIR. See --help."""

import os
import sys

import hydra
from omegaconf import DictConfig

from histo_pl.command_line import one_line_errors, quote_literals


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float:
    """Train as `conf/train.yaml` and the command line say, and return the lowest validation loss."""
    with one_line_errors():
        from histo_pl.training import train

        return train(config)["validation"]["loss"]


if __name__ == "__main__":
    sys.argv[1:] = quote_literals(sys.argv[1:], dict(os.environ))
    main()  # pyright: ignore[reportCallIssue]  (Hydra brings the configuration)
