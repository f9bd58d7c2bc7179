"""Intervals over cases: what they must do; docs/coverage.py measures how often they hold the truth."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from histo_pl.evaluation.intervals import Estimate, estimate, t_quantile
from histo_pl.evaluation.metrics import NAMES

Data = tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.str_]]


def draw(cases: int = 20, tiles: int = 10, seed: int = 0, separation: float = 1.5) -> Data:
    generator = np.random.default_rng(seed)
    case = np.repeat(np.arange(cases), tiles)
    label = case % 2 == 1
    score = separation * label + generator.standard_normal(cases)[case] + generator.standard_normal(len(case))
    return 1 / (1 + np.exp(-score)), label, case.astype(str)


def width(found: Estimate) -> float:
    assert found.low is not None and found.high is not None
    return found.high - found.low


@pytest.mark.parametrize("freedom", [1, 2.5, 9, 100])
def test_the_t_quantile_is_scipys(freedom: float) -> None:
    assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-5)


def test_every_interval_holds_its_value_and_keeps_its_range() -> None:
    for seed in range(20):
        for name, found in estimate(*draw(seed=seed, separation=seed / 4), 0.5).items():
            assert found.value is not None and found.low is not None and found.high is not None, name
            assert found.low <= found.value <= found.high
            assert found.low >= (-1 if name == "mcc" else 0)
            assert found.high <= 1 or name == "log_loss"


def test_tiles_of_one_case_are_not_independent_evidence() -> None:
    probability, label, cases = draw()
    over_cases, over_tiles = (
        estimate(probability, label, units, 0.5) for units in (cases, np.arange(len(cases)).astype(str))
    )
    assert width(over_cases["auroc"]) > 1.5 * width(over_tiles["auroc"])
    assert over_cases["auroc"].value == over_tiles["auroc"].value


def test_copies_of_every_tile_change_nothing() -> None:
    probability, label, cases = draw()
    once = estimate(probability, label, cases, 0.5)
    thrice = estimate(np.tile(probability, 3), np.tile(label, 3), np.tile(cases, 3), 0.5)
    for name in NAMES:
        assert thrice[name].low == pytest.approx(once[name].low), name


def test_the_auroc_of_independent_tiles_has_delongs_interval() -> None:
    """DeLong et al., Biometrics 44, 1988: the variance from each observation's share of won comparisons."""
    probability, label, _ = draw(300, 1)
    won = (probability[label][:, None] > probability[~label]) + (probability[label][:, None] == probability[~label]) / 2
    variance = won.mean(1).var(ddof=1) / label.sum() + won.mean(0).var(ddof=1) / (~label).sum()
    value = won.mean()
    reach = stats.norm.ppf(0.975) * np.sqrt(variance) / (value * (1 - value))
    low, high = 1 / (1 + np.exp(-np.log(value / (1 - value)) + np.array([reach, -reach])))
    found = estimate(probability, label, np.arange(300).astype(str), 0.5)["auroc"]
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.005)


def test_a_perfect_result_is_no_certainty() -> None:
    _, label, cases = draw(20, 5)
    found = estimate(label * 0.8 + 0.1, label, cases, 0.5)
    for name in ("auroc", "sensitivity"):
        exact = stats.binomtest(10, 10).proportion_ci(0.95, "exact")
        assert (found[name].low, found[name].high) == pytest.approx((exact.low, exact.high)), name


@pytest.mark.parametrize("benign", [1, 2])
def test_a_class_of_too_few_cases_gives_a_value_and_no_interval(benign: int) -> None:
    label = np.array([False] * 5 * benign + [True] * 30)
    cases = np.arange(len(label)) // 5
    found = estimate(np.random.default_rng(0).random(len(label)), label, cases.astype(str), 0.5)
    for name in ("auroc", "specificity", "balanced_accuracy"):
        assert found[name].value is not None and found[name].low is None
    assert found["sensitivity"].low is not None


def test_one_class_alone_leaves_what_needs_both_undefined() -> None:
    found = estimate(np.array([0.2, 0.9, 0.6]), np.array([True] * 3), np.array(list("abc")), 0.5)
    assert found["auroc"] == found["specificity"] == Estimate(None, None, None)
    assert found["sensitivity"].value == pytest.approx(2 / 3)


def test_thousands_of_independent_tiles_take_groups_and_stay_close() -> None:
    probability, label, cases = draw(2000, 1)
    found = estimate(probability, label, cases, 0.5)["accuracy"]
    share = found.value or 0
    exact = stats.norm.ppf(0.975) * np.sqrt(share * (1 - share) / 2000)
    assert width(found) / 2 == pytest.approx(exact, rel=0.2)
