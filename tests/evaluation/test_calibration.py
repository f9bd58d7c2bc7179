import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import binary_cross_entropy_with_logits

from histo_pl.errors import UserError
from histo_pl.evaluation.calibration import Calibration, choose_band, choose_threshold, fit_temperature


def draw(sharpness: float = 1.0, count: int = 4000) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Logits that are `sharpness` times too large."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, count)
    return sharpness * logits, generator.random(count) < 1 / (1 + np.exp(-logits))


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 5.0])
def test_the_temperature_undoes_an_overconfident_or_timid_network(sharpness: float) -> None:
    logits, malignant = draw(sharpness)
    found = fit_temperature(logits, malignant)
    assert found == pytest.approx(sharpness, rel=0.1)

    def loss(temperature: float) -> float:
        return float(
            binary_cross_entropy_with_logits(torch.tensor(logits / temperature), torch.tensor(malignant).double())
        )

    assert loss(found) < min(loss(found * 1.1), loss(found / 1.1))


def test_a_network_without_a_mistake_on_few_tiles_is_not_declared_certain() -> None:
    logits, malignant = np.array([-3.0, -2.0, 2.0, 3.0]), np.array([False, False, True, True])
    assert 1 / (1 + np.exp(-3 / fit_temperature(logits, malignant))) < 0.95


def test_a_diverged_network_keeps_its_temperature() -> None:
    assert fit_temperature(np.array([np.nan, 1.0]), np.array([True, False])) == 1.0


def test_youden_is_the_best_of_all_thresholds() -> None:
    logits, malignant = draw(count=200)
    probability = 1 / (1 + np.exp(-logits))

    def gain(threshold: float) -> float:
        called = probability > threshold
        return called[malignant].mean() - called[~malignant].mean()

    chosen = choose_threshold("youden", 0.95, probability, malignant)
    assert gain(chosen) == pytest.approx(max(gain(threshold) for threshold in np.r_[0, probability]))


@pytest.mark.parametrize("least", [0.5, 0.95, 1.0])
def test_the_sensitivity_rule_takes_the_highest_threshold_that_keeps_it(least: float) -> None:
    logits, malignant = draw(count=300)
    probability = 1 / (1 + np.exp(-logits))
    chosen = choose_threshold("sensitivity", least, probability, malignant)
    assert (probability[malignant] > chosen).mean() >= least
    next_higher = probability[probability > chosen].min()
    assert (probability[malignant] > next_higher).mean() < least or next_higher not in probability[malignant]


def test_the_band_keeps_its_error_rate_and_refers_no_more_than_it_must() -> None:
    logits, malignant = draw()
    probability = 1 / (1 + np.exp(-logits))
    low, high = choose_band(0.05, 0.5, probability, malignant)
    answered = (probability < low) | (probability > high)
    errors = ((probability > 0.5) != malignant)[answered].mean()
    assert 0.03 < errors <= 0.05
    assert 0 < low < 0.5 < high < 1


def test_a_band_is_empty_without_errors_and_everything_if_no_answer_is_good_enough() -> None:
    malignant = np.array([False, True, False, True])
    assert choose_band(0.1, 0.5, np.array([0.1, 0.9, 0.2, 0.8]), malignant) == (0.5, 0.5)
    assert choose_band(0.1, 0.5, np.array([0.9, 0.1, 0.8, 0.2]), malignant) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"threshold": "best"}, "calibration.threshold"),
        ({"threshold": 1.5}, "calibration.threshold"),
        ({"threshold": True}, "calibration.threshold"),
        ({"least_sensitivity": 0}, "calibration.least_sensitivity"),
        ({"refer_error_rate": 5}, "calibration.refer_error_rate"),
        ({"refer_error_rate": "low"}, "calibration.refer_error_rate"),
    ],
)
def test_settings_that_cannot_be_met_are_refused_at_once(setting: dict[str, float | str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Calibration(**setting)  # pyright: ignore[reportArgumentType]


def test_a_threshold_needs_both_classes() -> None:
    with pytest.raises(UserError, match="cannot be chosen by youden"):
        Calibration(threshold="youden").choose(np.array([1.0, 2.0]), np.array([True, True]))
