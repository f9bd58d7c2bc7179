"""The report: whole, self-contained, and safe whatever files are called."""

import re
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from histo_pl.evaluation import plots
from histo_pl.evaluation.cases import CaseRule, by_case, summarize_cases
from histo_pl.evaluation.predictions import Predictions, format_estimate, referral
from histo_pl.evaluation.report import Report, figures, worst_mistakes
from tests.conftest import draw_image


def make_scores(count: int = 40, with_cases: bool = True) -> Predictions:
    generator = np.random.default_rng(0)
    malignant = np.arange(count) % 8 >= 4
    path, case = np.array([f"tile<{n}>.png" for n in range(count)]), np.array([f"case{n // 4}" for n in range(count)])
    return Predictions(
        path=path,
        case=case if with_cases else np.full(count, ""),
        group=case if with_cases else path,
        malignant=malignant,
        probability=np.clip(malignant * 0.3 + generator.random(count) * 0.7, 0, 1),
        threshold=np.full(count, 0.5),
        novelty=np.linspace(0, 1.2, count),
    )


def results_of(scores: Predictions) -> dict[str, Any]:
    return {
        "test": scores.summary(),
        "test_by_case": summarize_cases(by_case(scores, CaseRule()), CaseRule()),
        "case_level": {"title": "mean probability", "note": None},
        "decision": {"threshold": 0.5, "temperature": 1.2, "rule": "fixed"},
        "refer": referral(scores, (0.4, 0.6)),
        "data": {
            "name": "<b>set</b>",
            "root": "tiles & more",
            "positive_class": "m",
            "negative_class": "b",
            "parts": {"test": {"tiles": 40, "malignant": 20, "cases": None}},
        },
    }


class Page(HTMLParser):
    """Collects every address and script."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href")]


@pytest.mark.parametrize("with_cases", [True, False])
def test_the_page_asks_for_nothing_and_runs_nothing(tmp_path: Path, with_cases: bool) -> None:
    scores = make_scores(with_cases=with_cases)
    for path in scores.path:
        draw_image(tmp_path / path)
    columns = {"kind": ["<script>alert(1)</script>" if n % 2 else "x" for n in range(len(scores))]}
    cases, notes = by_case(scores, CaseRule()), ["a note & more"]
    report = Report("<title>", results_of(scores), scores, cases, tmp_path, columns, notes, settings="a: <b>")
    report.write(tmp_path / "report.html", figures(scores, cases, {"test": scores.novelty}))
    text = (tmp_path / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert "script" not in page.tags and "b" in page.tags
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    assert not re.findall(r"url\((?!#|\"?#)", text)
    assert page.tags.count("svg") == 5
    assert page.tags.count("img") == len(worst_mistakes(scores))
    assert ("The cases are unknown" in text) != with_cases


@pytest.mark.parametrize("name", ["BODY", "TITLE", "costs $5 or $6", "{{ title }}", "a_{b}$^$"])
def test_any_name_of_a_data_set_is_shown_as_it_is(tmp_path: Path, name: str) -> None:
    scores = make_scores()
    results = results_of(scores) | {"validation": {"epoch": 1}, "epochs": 1}
    results["data"]["name"] = name
    epochs = [{"epoch": 0, "train/loss": 1.0, "val/loss": 1.0}]
    report = Report(name, results, scores, None, tmp_path, epochs=epochs)
    report.write(tmp_path / "report.html", figures(scores, None, {}))
    text = (tmp_path / "report.html").read_text()
    assert f"<h1>{escape(name)}</h1>" in text
    plots.plot_curves(epochs, 0, name).savefig(tmp_path / "curves.png")


def test_a_result_of_one_class_or_of_no_number_still_has_its_report(tmp_path: Path) -> None:
    scores = make_scores()
    diverged = scores.with_probability(np.full(len(scores), np.nan), 0.5)
    for ones in (scores.take(scores.malignant), diverged):
        Report("t", results_of(ones), ones, None, tmp_path).write(tmp_path / "report.html", figures(ones, None, {}))
        assert "undefined" in (tmp_path / "report.html").read_text()


def test_the_worst_mistakes_are_the_most_certain_ones_of_both_kinds() -> None:
    scores = make_scores(200)
    worst = worst_mistakes(scores)
    wrong = scores.called != scores.malignant
    assert wrong[worst].all()
    for malignant in (True, False):
        mine = [index for index in worst if scores.malignant[index] == malignant]
        errors = np.abs(scores.probability - scores.malignant)
        rest = [index for index in np.flatnonzero(wrong & (scores.malignant == malignant)) if index not in mine]
        assert errors[mine].min() >= errors[rest].max(initial=0)


def test_a_referral_counts_what_it_answers() -> None:
    scores = make_scores()
    found = referral(scores, (0.4, 0.6))
    answered = (scores.probability < 0.4) | (scores.probability > 0.6)
    assert found["answered"] == answered.sum() == len(scores) - (found["referred"] or 0)
    assert found["wrong"] == (scores.called != scores.malignant)[answered].sum()


@pytest.mark.parametrize(
    ("value", "ends", "text"), [(0.5, [0.25, 1.0], ".500 (.250 to 1.000)"), (1.0, None, "1.000"), (None, None, "")]
)
def test_an_undefined_value_is_blank(value: float | None, ends: list[float] | None, text: str) -> None:
    assert format_estimate({"auroc": value, "intervals": {"auroc": ends}}, "auroc") == text
