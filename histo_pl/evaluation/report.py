"""A run's or an evaluation's report: one HTML file that needs no other, to look at and to print."""

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from histo_pl.errors import ImageError
from histo_pl.evaluation import plots
from histo_pl.evaluation.measures import NAMES
from histo_pl.evaluation.scores import Scores
from histo_pl.images import read_rgb
from histo_pl.storage import replacing_text

WORST = 12  # mistakes shown, of each kind half
THUMBNAIL = 132  # pixels
HEADLINES = ("auroc", "balanced_accuracy", "sensitivity", "specificity")
MAX_VALUES = 20  # of a column in the report

HOW_TO_READ = (
    "Blank: undefined. Without an interval: fewer than three cases of a class that the metric rests on, or all cases "
    "alike. Cases are called by the same threshold as tiles."
)
LIMITS = (
    "Research software, no medical device: nothing here must guide anyone's care.",
    "The figures hold for tiles of these laboratories, scanners, stains and magnifications; elsewhere they can be "
    "much lower.",
    "Intervals say how far chance among the tested cases reaches, not what other hospitals' cases would bring.",
    "The ECE of few tiles is above 0 by chance alone.",
)


@dataclass(frozen=True)
class Report:
    """What a report shows.

    Attributes:
        title: Headline.
        results: The contents of results.json; `test`, `data`, `decision` and, where known, `test_by_case`.
        scores: The tested tiles, their paths relative to `root`.
        root: Where the tiles lie.
        columns: Further facts of each tile, such as its magnification, by name.
        notes: What a reader must know first, such as tiles that the model had seen.
        epochs: A run's metrics an epoch; empty for an evaluation.
        settings: The configuration as YAML.
    """

    title: str
    results: Mapping[str, Any]
    scores: Scores
    root: Path
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    epochs: Sequence[Mapping[str, float]] = ()
    settings: str = ""

    def write(self, file: Path, drawn: Mapping[str, Figure]) -> None:
        """Write the report.

        Args:
            file: The HTML file.
            drawn: What `figures` returns.
        """
        sections = [
            _headlines(self.results["test"]),
            _section("Results", _metrics_table(self.results)),
            _section("Curves", _curves(drawn)),
            _section("Confusion", _confusions(self.results)),
            _section("Decision", _decision(self.results)),
            _section("Data", _data(self.results)),
            *(_section(f"Results by {name}", _by_column(self.scores, ones)) for name, ones in self.columns.items()),
            _section("Worst mistakes", _worst(self.scores, self.root)),
            _section("Training", _training(self.epochs, self.results)),
            _section("Settings", f"<details><summary>Show</summary><pre>{escape(self.settings)}</pre></details>"),
            _section("Limits", _list(LIMITS)),
        ]
        notes = "".join(f'<p class="note">{escape(note)}</p>' for note in self.notes)
        body = f"<header><h1>{escape(self.title)}</h1>{notes}</header>" + "".join(sections)
        with replacing_text(file, errors="backslashreplace") as stream:
            stream.write(PAGE.replace("TITLE", escape(self.title)).replace("BODY", body))


def format_estimate(level: Mapping[str, Any], name: str) -> str:
    """Write a metric and its interval, such as `.915 (.820 to .962)`.

    Args:
        level: What `Scores.summary` returns.
        name: The metric.

    Returns:
        The text; empty where the metric is undefined.
    """
    if level[name] is None:
        return ""
    ends = level["intervals"][name]
    return _number(level[name]) + (f" ({_number(ends[0])} to {_number(ends[1])})" if ends else "")


def _number(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3f}"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def _list(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    def row(cells: Sequence[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return f'<div class="wide"><table><thead>{row(header, "th")}</thead><tbody>{body}</tbody></table></div>'


def _headlines(test: Mapping[str, Any]) -> str:
    cards = []
    for name in HEADLINES:
        ends = test["intervals"][name]
        interval = f"{_number(ends[0])} to {_number(ends[1])}" if ends else "no interval: too few cases"
        value = "undefined" if test[name] is None else _number(test[name])
        cards.append(f'<div class="card"><b>{value}</b><span>{NAMES[name]}</span><small>{interval}</small></div>')
    return f'<section class="cards">{"".join(cards)}</section>'


def _metrics_table(results: Mapping[str, Any]) -> str:
    test, by_case = results["test"], results.get("test_by_case")
    if by_case:
        header = ("", f"{test['tiles']} tiles", f"{by_case['tiles']} cases (mean probability)")
        caption = f"95% intervals over the {test['cases']} cases."
    else:
        header = ("", f"{test['tiles']} tiles")
        caption = (
            "95% intervals over tiles, as the cases are unknown: with several tiles a patient they are too narrow."
        )
    levels = [level for level in (test, by_case) if level]
    rows = [(title, *(format_estimate(level, name) for level in levels)) for name, title in NAMES.items()]
    baseline = results.get("colour_only")
    if baseline:
        caption += (
            f" From colour alone, without a look at any shape, the AUROC is {format_estimate(baseline, 'auroc')}: "
            f"what a model does not clearly add to this, it has not learnt from tissue."
        )
    return _table(header, rows) + f"<p>{escape(caption)} {HOW_TO_READ}</p>"


def _levels(scores: Scores) -> dict[str, Scores]:
    cases = scores.by_case() if scores.unit == "cases" else None
    both = cases is not None and not cases.malignant.all()
    return {"tiles": scores} | ({"cases": cases} if cases is not None and both else {})


def figures(scores: Scores) -> dict[str, Figure]:
    """Draw what can be drawn of tested tiles.

    Args:
        scores: The tiles.

    Returns:
        By the name of the file: roc, precision_recall (if both classes are there), calibration and histogram.
    """
    if not len(scores) or not np.isfinite(scores.probability).all():
        return {}
    drawn = {"calibration": plots.plot_calibration(scores), "histogram": plots.plot_histogram(scores)}
    if scores.malignant.all() or not scores.malignant.any():
        return drawn
    levels = _levels(scores)
    return {"roc": plots.plot_roc(levels), "precision_recall": plots.plot_precision_recall(levels)} | drawn


def _curves(drawn: Mapping[str, Figure]) -> str:
    names = {
        "roc": "ROC",
        "precision_recall": "Precision and recall",
        "calibration": "Calibration of the tiles' probabilities",
        "histogram": "Probabilities of the tiles",
    }
    return (
        '<div class="plots">'
        + "".join(
            f"<figure><figcaption>{names[name]}</figcaption>{_svg(figure)}</figure>" for name, figure in drawn.items()
        )
        + "</div>"
    )


def _svg(figure: Figure) -> str:
    """Draw into the page: text and axes take the page's colour, in a light and in a dark one."""
    stream = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "histo_pl"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    drawing = text[text.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r' (?:width|height)="[\d.]+pt"', "", drawing, count=2)
    return drawing.replace("#000000", "currentColor")


def _confusions(results: Mapping[str, Any]) -> str:
    tables = []
    for name, level in (("Tiles", results["test"]), ("Cases", results.get("test_by_case"))):
        if level:
            cells = level["confusion"]
            rows = [("truly benign", cells["tn"], cells["fp"]), ("truly malignant", cells["fn"], cells["tp"])]
            tables.append(f"<div>{_table((name, 'called benign', 'called malignant'), rows)}</div>")
    return f'<div class="side">{"".join(tables)}</div>'


def _decision(results: Mapping[str, Any]) -> str:
    decision = results["decision"]
    rows = [
        ("Malignant above", f"{decision['threshold']:.4g}"),
        ("which was chosen as", decision["rule"]),
        ("temperature", f"{decision['temperature']:.3f}"),
    ]
    refer = results.get("refer")
    if refer:
        left = "none answered" if refer["error_rate"] is None else f"{refer['error_rate']:.1%} of the answered wrong"
        rows += [
            ("Uncertain: refer", f"from {refer['low']:.3g} to {refer['high']:.3g}"),
            ("which here refers", f"{refer['referred']} of {refer['referred'] + refer['answered']} tiles; {left}"),
        ]
    return _table(("", ""), rows)


def _data(results: Mapping[str, Any]) -> str:
    data = results["data"]
    rows = [
        (part, counts["tiles"], counts["malignant"], "unknown" if counts["cases"] is None else counts["cases"])
        for part, counts in (data["parts"] or {}).items()
    ]
    lines = [
        f"{data['name']}, {data['root']}",
        f"Malignant is {data['positive_class']}, benign is {data['negative_class']}.",
    ]
    lines += [f"Split: {data['split'][:12]}"] if data.get("split") else []
    lines += results.get("warnings") or ["No file lies twice in two parts."]
    return _table(("part", "tiles", "malignant", "cases"), rows) + _list(lines)


def _by_column(scores: Scores, values: Sequence[str]) -> str:
    array = np.asarray(values)
    groups = {str(value): scores.take(array == value).summary() for value in sorted(set(values))[:MAX_VALUES]}
    rows = [
        (
            value or "(none)",
            group["tiles"],
            group["malignant"],
            "" if group["cases"] is None else group["cases"],
            *(format_estimate(group, name) for name in HEADLINES),
        )
        for value, group in groups.items()
    ]
    more = len(set(values)) - len(groups)
    note = f"<p>And {more} other values.</p>" if more else ""
    header = ("", "tiles", "malignant", "cases", *(NAMES[name] for name in HEADLINES))
    return _table(header, rows) + note


def worst_mistakes(scores: Scores) -> list[int]:
    """Find the tiles that are most certainly wrong.

    Args:
        scores: The tiles.

    Returns:
        Indices: half benign ones called malignant, half malignant ones called benign, the worst of each first.
    """
    chosen: list[int] = []
    for malignant in (False, True):
        wrong = np.flatnonzero((scores.malignant == malignant) & (scores.called != malignant))
        distance = np.abs(scores.probability - scores.malignant)[wrong]
        chosen += wrong[np.argsort(-distance, kind="stable")][: WORST // 2].tolist()
    return chosen


def _worst(scores: Scores, root: Path) -> str:
    def figure(index: int) -> str:
        truth = "malignant" if scores.malignant[index] else "benign"
        path = str(scores.path[index])
        text = f"truly {truth}, probability {scores.probability[index]:.3f}"
        name = escape(Path(path).name)
        return f"<figure>{_thumbnail(root / path)}<figcaption><b>{text}</b><br>{name}</figcaption></figure>"

    mistakes = worst_mistakes(scores)
    if not mistakes:
        return "<p>No tile was called wrongly.</p>"
    return f'<div class="tiles">{"".join(map(figure, mistakes))}</div>'


def _thumbnail(file: Path) -> str:
    try:
        image = Image.fromarray(read_rgb(file))
    except ImageError:
        return "<div class='gone'>The file is gone.</div>"
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}">'


def _training(epochs: Sequence[Mapping[str, float]], results: Mapping[str, Any]) -> str:
    if not epochs:
        return ""
    kept = results["validation"]["epoch"]
    figure = plots.plot_curves(epochs, kept - 1, "")
    return (
        f'<div class="curves">{_svg(figure)}</div><p>The weights of epoch {kept} of {results["epochs"]} were kept.</p>'
    )


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<style>
:root { color-scheme: light dark; --ink: #1c2733; --soft: #5a6875; --line: #d9dfe5; --page: #fff; --card: #f4f6f8;
  --note: #fff4d6; --accent: #2a6f97 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaee; --soft: #9aa7b3; --line: #36414b; --page: #14191e;
  --card: #1e252c; --note: #3d3415; --accent: #7fbbe0 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1000px; padding: 1.5rem 1rem 3rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .6rem; overflow-wrap: anywhere }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line) }
.note { background: var(--note); padding: .5rem .8rem; border-radius: 6px; margin: .4rem 0 }
.cards { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); margin-top: 1.2rem }
.card { background: var(--card); border-radius: 8px; padding: .7rem .9rem; display: flex; flex-direction: column }
.card b { font-size: 1.8rem; line-height: 1.2; color: var(--accent) }
.card small, figcaption { color: var(--soft) }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .28rem 1.1rem .28rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
th { color: var(--soft); font-weight: 600 }
td { white-space: nowrap }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 1rem 2rem }
figure { margin: 0 }
svg { width: 100%; height: auto; display: block; color: var(--ink) }
svg text { fill: currentColor; font-family: inherit !important }
.side { display: flex; flex-wrap: wrap; gap: 2.5rem }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(132px, 1fr)); gap: 1rem }
.tiles img { width: 100%; max-width: 160px; border-radius: 4px; display: block }
.tiles figcaption { font-size: .75rem; overflow-wrap: anywhere }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; background: var(--card); padding: .8rem;
  border-radius: 6px }
@media (max-width: 700px) { .curves { overflow-x: auto } .curves svg { min-width: 620px } }
@media print { :root { color-scheme: light } body { max-width: none; font-size: 11px } section { break-inside: avoid }
  .plots { grid-template-columns: 1fr 1fr } }
</style>
BODY
</html>
"""
