"""Test a checkpoint on a folder of tiles: python evaluate.py ckpt=latest data=folder data.root=DIR. See --help."""

import os
import sys

import hydra
from omegaconf import DictConfig

from histo_pl.command_line import one_line_errors, quote_literals


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(config: DictConfig) -> None:
    """Evaluate as `conf/evaluate.yaml` and the command line say."""
    with one_line_errors():
        from histo_pl.evaluate import evaluate

        evaluate(config)


if __name__ == "__main__":
    sys.argv[1:] = quote_literals(sys.argv[1:], dict(os.environ))
    main()  # pyright: ignore[reportCallIssue]  (Hydra brings the configuration)
