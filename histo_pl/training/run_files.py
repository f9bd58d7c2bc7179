"""The names of the files in a run's folder."""

import json
from pathlib import Path
from typing import Any

CONFIG, BEST, LAST = "config.yaml", "best.ckpt", "last.ckpt"
RESULTS_FILE = "results.json"
RESULTS = (RESULTS_FILE, BEST, LAST)  # files that only a run's folder has


def read_results(folder: Path) -> dict[str, Any]:
    """Read the results.json of a run that has finished."""
    return json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
