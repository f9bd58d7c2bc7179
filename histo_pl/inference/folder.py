"""The folder of a prediction: claimed for one model and its settings, in which a stopped run goes on."""

import json
from collections import Counter
from collections.abc import Sequence
from os.path import commonpath
from pathlib import Path
from typing import Any

from histo_pl.errors import UserError
from histo_pl.models.checkpoint import hashes_of_checkpoint
from histo_pl.signals import CommandLine, set_stop_message
from histo_pl.storage import atomic_write_text, new_folder, refuse_results

RUN = "run.json"
RESULTS = ("report.html", "slides.csv", "predictions.csv")  # of a run


def open_folder(out: str | None, checkpoint: Path, settings: dict[str, Any], command_line: CommandLine) -> Path:
    """Make the folder of a run, or take up that of a stopped one with the same model and settings.

    Args:
        out: The folder; None: predictions/DAY/TIME.
        checkpoint: The model's file or folder.
        settings: What the answers depend on, in plain values.
        command_line: Writes this run's command with some keys changed.

    Returns:
        The folder. A signal from now on names the command that goes on.

    Raises:
        UserError: The folder is that of a run with another model or settings.
    """
    folder = Path(out or new_folder("predictions/%Y-%m-%d/%H-%M-%S"))
    run = {"model": str(checkpoint), "sha256": _fingerprint(checkpoint), "settings": settings}
    known = folder / RUN
    if known.exists():
        _check_same(_read_run(known), run, folder)
    else:
        refuse_results(folder, RESULTS, "out")
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write_text(known) as stream:
            stream.write(json.dumps(run, indent=2) + "\n")
    go_on = command_line(f"out={folder}") or f"the same call with out={folder}"
    set_stop_message(lambda: f"What was answered is in {folder}. Go on with: {go_on}")
    return folder


def forget_run(folder: Path) -> None:
    """Remove what `open_folder` wrote where nothing else was, so that other settings may be tried."""
    if [file.name for file in folder.rglob("*") if file.is_file()] == [RUN]:
        (folder / RUN).unlink()


def _fingerprint(checkpoint: Path) -> str:
    return ",".join(hashes_of_checkpoint(checkpoint).values())


def _read_run(file: Path) -> dict[str, Any]:
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"This file is no run of predictions ({error}). Name another out. Received: {file}") from error
    return run if isinstance(run, dict) else {}


def _check_same(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    if before.get("sha256") != now["sha256"]:
        raise UserError(
            f"This folder holds answers of another model, {before.get('model')}. Expected the same, or another out. "
            f"Received: {now['model']} for {folder}"
        )
    old, new = before.get("settings", {}), now["settings"]
    changed = [f"{key}={new[key]} instead of {old.get(key)}" for key in new if new[key] != old.get(key)]
    if changed:
        raise UserError(
            f"This folder holds answers by other settings. Expected the same, or another out. "
            f"Received: {', '.join(changed)} for {folder}"
        )


def names_of(files: Sequence[Path]) -> list[str]:
    """Name slides for their folders: by their paths below the folder that they share, without the file's ending.

    Args:
        files: At least one.

    Returns:
        Different names; where two would be the same, with the ending.
    """
    paths = [file.absolute() for file in files]
    shared = commonpath([path.parent for path in paths])
    relative = [path.relative_to(shared) for path in paths]
    names = [path.with_suffix("").as_posix() for path in relative]
    times = Counter(names)
    return [name if times[name] == 1 else path.as_posix() for name, path in zip(names, relative, strict=True)]
