"""The end of a sweep: its summary, and its failures."""

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from histo_pl.cli.program import FAILED
from histo_pl.errors import UserError


class SweepReport(Callback):
    """Tells which jobs of a Hydra multirun failed and why, when the last has ended.

    Args:
        summarize: Summarize the runs too, as `python -m histo_pl summarize` does.
    """

    def __init__(self, summarize: bool = False) -> None:
        self.summarize = summarize

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ANN401
        """Print the summary and the failures of the sweep's folder.

        Args:
            config: The sweep's configuration, its `hydra` node included.
            **kwargs: Not used.

        Raises:
            SystemExit: A job failed; exit status 1.
        """
        folder = Path(config.hydra.sweep.dir)
        if self.summarize:
            _print_summary(folder)
        failures = sorted(folder.glob(f"*/{FAILED}"))
        if failures:
            lines = [f"{len(failures)} of the sweep's jobs failed:", *map(_describe, failures)]
            print("\n".join(lines), file=sys.stderr, flush=True)
            raise SystemExit(1)


def _print_summary(folder: Path) -> None:
    from histo_pl.evaluation.summarize import summarize

    try:
        print(summarize(folder))
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)


def _describe(note: Path) -> str:
    overrides, message, *_ = [*note.read_text(encoding="utf-8", errors="surrogateescape").split("\n"), ""]
    return f"  {note.parent} ({overrides}): {message}"
