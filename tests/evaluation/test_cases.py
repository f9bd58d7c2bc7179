"""Results by case: pure ones, mixed ones, and the scores that a user may choose."""

from dataclasses import replace

import numpy as np
import pytest

from histo_pl.errors import UserError
from histo_pl.evaluation.calibration import Calibration
from histo_pl.evaluation.cases import CaseRule, by_case, case_rule, count_mixed_cases, explain_cases, summarize_cases
from histo_pl.evaluation.predictions import Predictions


def make(mixed: bool = True, cases: int = 12, tiles: int = 15) -> Predictions:
    generator = np.random.default_rng(0)
    case = np.repeat(np.arange(cases), tiles)
    malignant = (generator.random(len(case)) < 0.3) & (case % 2 == 0) if mixed else case % 2 == 0
    names = np.array([f"p{one}" for one in case])
    order = generator.permutation(len(case))
    return Predictions(
        path=np.array([f"{number}.png" for number in range(len(case))]),
        case=names,
        group=names,
        malignant=malignant,
        probability=np.clip(0.4 * malignant + 0.6 * generator.random(len(case)), 0, 1),
        threshold=np.full(len(case), 0.5),
        novelty=np.full(len(case), np.nan),
    ).take(order)


def test_a_pure_case_has_its_tiles_class_and_mean() -> None:
    tiles = make(mixed=False)
    cases = by_case(tiles, CaseRule())
    assert cases is not None
    for name, malignant, probability in zip(cases.path, cases.malignant, cases.probability, strict=True):
        own = tiles.case == name
        assert (tiles.malignant[own] == malignant).all()
        assert probability == pytest.approx(tiles.probability[own].mean())
    assert explain_cases(tiles, CaseRule()) is None
    assert cases.unit == "cases"


def test_a_mixed_case_has_no_class_of_its_own() -> None:
    tiles = make()
    assert count_mixed_cases(tiles) == 6
    assert by_case(tiles, CaseRule()) is None
    assert summarize_cases(None, CaseRule()) is None
    assert "Cases with tiles of both classes: 6 of 12" in str(explain_cases(tiles, CaseRule()))
    found = tiles.summary()
    assert found["intervals_over"] == "cases" and found["intervals"]["auroc"] is not None


SCORES = {
    "mean": np.mean,
    "max": np.max,
    "top10": lambda of_case: np.sort(of_case)[-10:].mean(),
    "share": lambda of_case: (of_case > 0.5).mean(),
}


@pytest.mark.parametrize("score", SCORES)
def test_a_chosen_truth_and_score_are_those_of_the_tiles(score: str) -> None:
    tiles = make()
    cases = by_case(tiles, CaseRule("any", score, 0.25))
    assert cases is not None
    for name, malignant, value in zip(cases.path, cases.malignant, cases.probability, strict=True):
        own = tiles.case == name
        assert malignant == tiles.malignant[own].any()
        assert value == pytest.approx(SCORES[score](tiles.probability[own]))
    assert set(cases.threshold) == {0.25}


def test_the_threshold_of_a_score_is_chosen_on_cases() -> None:
    tiles = make()
    rule = case_rule("any", "max").fit(tiles, Calibration())
    cases = by_case(tiles, rule)
    assert cases is not None and rule.threshold is not None
    highest = {bool(m): cases.probability[cases.malignant == m] for m in (True, False)}
    best = max((highest[True] > cut).mean() + (highest[False] <= cut).mean() for cut in np.linspace(0, 1, 2001))
    assert cases.called[cases.malignant].mean() + (~cases.called)[~cases.malignant].mean() == pytest.approx(best)
    summary = summarize_cases(cases, rule)
    assert summary is not None and summary["auroc"] is not None
    assert summary["brier"] is summary["log_loss"] is summary["ece"] is None
    assert "highest probability" in str(explain_cases(tiles, rule))


@pytest.mark.parametrize(
    ("truth", "score", "message"),
    [
        ("any", None, "belong together"),
        (None, "max", "belong together"),
        ("all", "max", "case_truth is unknown"),
        ("any", "sum", "case_score is unknown"),
    ],
)
def test_an_unknown_or_lone_choice_is_refused(truth: str | None, score: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        case_rule(truth, score)


def test_copies_count_once_where_a_file_joins_them() -> None:
    """Eight copies of a tile are one observation if the groups say so."""
    once = make(tiles=1, cases=60, mixed=False)
    alone = replace(once, case=np.full(60, ""), group=once.path)
    eight = Predictions.join([alone] * 8)
    joined = eight.summary()
    assert joined["intervals"]["auroc"] == pytest.approx(alone.summary()["intervals"]["auroc"])
    assert (joined["units"], joined["tiles"]) == (60, 480)
    named = Predictions(
        np.array([f"{n}.png" for n in range(480)]),
        eight.case,
        eight.group,
        eight.malignant,
        eight.probability,
        eight.threshold,
        eight.novelty,
    )
    assert named.unit == "groups"
