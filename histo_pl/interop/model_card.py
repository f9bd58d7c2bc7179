"""Model cards: what is known of a checkpoint, from itself and the results beside it; nothing else."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from histo_pl import __version__
from histo_pl.errors import UserError
from histo_pl.evaluation.levels import Levels
from histo_pl.evaluation.metrics import NAMES
from histo_pl.evaluation.predictions import format_estimate
from histo_pl.models.checkpoint import TrainedModel, hashes_of_checkpoint, is_cross_validation
from histo_pl.models.ensemble import FoldEnsemble
from histo_pl.storage import atomic_write_text, hash_file

TEMPLATE = Path(__file__).with_name("model_card.md.j2")
UNKNOWN = "unknown"
# Hugging Face's names of the metrics that it knows.
HUB_METRICS = {"auroc": "roc_auc", "accuracy": "accuracy", "f1": "f1", "brier": "brier_score"}
DECISION = ("temperature", "threshold")  # that a results.json shares with the checkpoint that it is of


@dataclass(frozen=True)
class Exported:
    """The export that a card lies beside.

    Attributes:
        kind: `onnx`, `torch` or `qupath`.
        file: The model's file.
        mpp: Micrometres per pixel of the training tiles' own files; None: unknown.
        spacing: Micrometres per pixel of the network's input; None: not for QuPath.
    """

    kind: str
    file: Path
    mpp: float | None
    spacing: float | None = None


def write_card(checkpoint: Path, model: TrainedModel, file: Path, exported: Exported | None = None) -> None:
    """Write a model card in Markdown, with Hugging Face's metadata at its head.

    Args:
        checkpoint: A `best.ckpt`, or the folder of a cross-validation.
        model: The model of that checkpoint.
        file: The file to write.
        exported: The export that it lies beside; None: none.
    """
    with atomic_write_text(file) as stream:
        stream.write(format_card(checkpoint, model, exported))


def format_card(checkpoint: Path, model: TrainedModel, exported: Exported | None = None) -> str:
    """Write a model card as a text, see `write_card`.

    Args:
        checkpoint: Its file or folder.
        model: The model of that checkpoint.
        exported: The export that it lies beside; None: none.
    """
    results = read_results(checkpoint, model)
    levels = None if results is None else Levels.of(results)
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"json": json.dumps, "cell": _cell, "number": lambda value: f"{value:.4g}"}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        model=model,
        data=model.data,
        network=model.model_config,
        parts=model.data.get("parts") or {},
        parameters=sum(weight.numel() for weight in model.network.parameters()),
        results=results or {},
        levels=levels,
        metrics=() if levels is None else _metrics(levels, results or {}),
        hub_metrics=() if levels is None else _hub_metrics(levels),
        novelty=_novelties(model),
        hashes=hashes_of_checkpoint(checkpoint),
        checklist=_checklist(model, results),
        export=exported and exported.kind,
        exported={exported.file.name: hash_file(exported.file)} if exported else {},
        spacing=exported and exported.spacing,
        own_mpp=exported.mpp if exported else model.mpp,
        version=__version__,
    )


def read_results(checkpoint: Path, model: TrainedModel) -> dict[str, Any] | None:
    """Read the results that lie beside a checkpoint.

    Args:
        checkpoint: Its file, or the folder of a cross-validation.
        model: The model of that checkpoint.

    Returns:
        The contents of results.json, or of a cross-validation the pooled results of summary.json; None if there are
        none, or if they are of another model than this.

    Raises:
        UserError: The file is damaged.
    """
    if is_cross_validation(checkpoint):
        pooled = (_read_json(checkpoint / "summary.json") or {}).get("pooled")
        return pooled and {**pooled, "case_level": {"note": pooled["case_note"]}}
    results = _read_json(checkpoint.with_name("results.json"))
    if results is None or checkpoint.name != "best.ckpt" or model.data.get("recalibrated_on"):
        return None
    same = all(results["decision"][name] == getattr(model, name) for name in DECISION)
    return results if same and results["data"]["split"] == model.data["split"] else None


def facts_of_card(checkpoint: Path, model: TrainedModel) -> dict[str, Any]:
    """Return what a card says in plain values, as the HTTP API answers it."""
    results = read_results(checkpoint, model)
    levels = None if results is None else Levels.of(results)
    return {
        "trained_on": model.trained_on,
        "synthetic": model.data["synthetic"],
        "classes": [model.data["negative_class"], model.data["positive_class"]],
        "positive_class": model.data["positive_class"],
        "network": model.model_config,
        "image_size": model.image_size,
        "resize": model.resize,
        "mpp": model.mpp,
        "tile_size": model.tile_size and list(model.tile_size),
        "threshold": model.threshold,
        "rule": model.rule,
        "temperature": model.temperature,
        "refer": model.refer and list(model.refer),
        "parts": model.data.get("parts"),
        "checkpoints": hashes_of_checkpoint(checkpoint),
        "results": levels and {"of": levels.name, "by_tile": dict(levels.tiles), "by_case": levels.cases},
        "colour_only": results and results.get("colour_only"),
        "histo_pl": __version__,
    }


def _read_json(file: Path) -> Any:  # noqa: ANN401
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"These results are damaged ({error}). Expected a whole file. Received: {file}") from error


def _cell(value: object) -> str:
    """Write a value for a cell of a Markdown table; what a user named may hold anything."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def _metrics(levels: Levels, results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    columns = (levels.tiles, levels.cases, results.get("colour_only"))
    return [
        (name, *("" if column is None else format_estimate(column, metric) or "undefined" for column in columns))
        for metric, name in NAMES.items()
    ]


def _hub_metrics(levels: Levels) -> list[dict[str, Any]]:
    return [
        {"type": HUB_METRICS[metric], "value": round(levels.tiles[metric], 4), "name": f"{NAMES[metric]}, by tile"}
        for metric in HUB_METRICS
        if levels.tiles[metric] is not None
    ]


def _novelties(model: TrainedModel) -> list[dict[str, Any]]:
    if isinstance(model.network, FoldEnsemble):
        return [one.describe_limit() for one in model.network.novelties]  # pyright: ignore[reportCallIssue]
    return [] if model.novelty is None else [model.novelty.describe_limit()]


def _checklist(model: TrainedModel, results: Mapping[str, Any] | None) -> Sequence[tuple[str, str]]:
    """List items of TRIPOD+AI (Collins et al., BMJ 2024;385:e078378), and what is known of each here."""
    parts = model.data.get("parts")
    cases = None if parts is None else [part["cases"] for part in parts.values()]
    calibrated = "a calibrated" if model.finished else "an uncalibrated"
    known_cases = cases is not None and None not in cases
    checked = model.data.get("checked")
    data = "see Data"
    return (
        ("5 Data: source and dates", f"{model.trained_on}; the dates are {UNKNOWN}"),
        ("6 Participants: setting, eligibility, treatment", UNKNOWN),
        ("7 Data preparation", f"resized to {model.image_size} pixels ({model.resize}); {data}"),
        (
            "8 Outcome and how it was assessed",
            f"the class folders or labels of the data: {model.data['positive_class']}; the assessors are {UNKNOWN}",
        ),
        ("9 Predictors", "the pixels of one tile"),
        ("10 Sample size", data if parts else UNKNOWN),
        ("11 Missing data", _describe_checked(checked) if checked else UNKNOWN),
        ("12 Analytical methods", "see Settings"),
        ("13 Class imbalance", data if parts else UNKNOWN),
        ("14 Fairness: age, sex, ethnicity, site", f"{UNKNOWN}: not recorded"),
        ("15 Model output", f"{calibrated} probability of malignancy; the threshold is in Decision"),
        (
            "16 Training versus evaluation",
            f"{'split by patient' if known_cases else f'patients {UNKNOWN}: tiles of one may lie on both sides'}; the "
            f"same source unless Results say otherwise",
        ),
        ("17 Ethical approval", UNKNOWN),
        ("18 Open science: funding, protocol, registration", UNKNOWN),
        ("19 Patient and public involvement", UNKNOWN),
        ("20 Participants: numbers and demographics", f"{data}; demographics are {UNKNOWN}" if parts else UNKNOWN),
        ("21 Model development: numbers for each step", data if parts else UNKNOWN),
        ("22 Model specification", "the checkpoint holds all weights; see Files"),
        ("23 Model performance", "see Results" if results else UNKNOWN),
        ("24 Model updating", _describe_updates(model)),
        ("26 Limitations", "see Intended use and limits"),
        ("27 Usability of the model in current care", "none: research software"),
    )


def _describe_checked(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} tiles: {number}" for name, number in counts.items())


def _describe_updates(model: TrainedModel) -> str:
    updates = model.data.get("recalibrated_on") or ()
    return "; ".join(f"recalibrated on {one['name']}" for one in updates) or "none"
