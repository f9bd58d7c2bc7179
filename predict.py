"""Ask a trained model about images: python predict.py ckpt=latest img=FILE. See --help."""

import os
import sys
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from histo_pl.command_line import one_line_errors, quote_literals


@hydra.main(version_base="1.3", config_path="conf", config_name="predict")
def main(config: DictConfig) -> None:
    """Predict as `conf/predict.yaml` and the command line say."""
    with one_line_errors():
        from histo_pl.inference import predict

        arguments: Any = OmegaConf.to_container(config)
        sys.exit(predict(**arguments))


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):  # a file's name need not be Unicode
        stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    sys.argv[1:] = quote_literals(sys.argv[1:], dict(os.environ))
    main()  # pyright: ignore[reportCallIssue]  (Hydra brings the configuration)
