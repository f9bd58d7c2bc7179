"""Results by case: the truth and the score of a patient, from those of his tiles."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from histo_pl.errors import UserError
from histo_pl.evaluation.calibration import Calibration, choose_threshold
from histo_pl.evaluation.predictions import Predictions
from histo_pl.probability import SCORES, score_groups

TRUTHS = ("any",)
OF_PROBABILITIES = ("brier", "log_loss", "ece")  # metrics that mean nothing of a score


@dataclass(frozen=True)
class CaseRule:
    """The truth and the score of a case: `case_truth` and `case_score` in `conf/train.yaml`.

    Attributes:
        truth: None: a case has the class that all its tiles have, and where a case has tiles of both there is no result
            by case. `any`: a case is malignant if any of its tiles is.
        score: The score of a case, one of `SCORES`.
        threshold: A score above it means malignant, in [0, 1]; None: the tiles' own threshold.
    """

    truth: str | None = None
    score: str = "mean"
    threshold: float | None = None

    def __post_init__(self) -> None:
        """Refuse unknown names."""
        for key, value, known in (("case_truth", self.truth, (None, *TRUTHS)), ("case_score", self.score, SCORES)):
            if value not in known:
                expected = ", ".join(str(one) for one in known if one is not None)
                raise UserError(f"{key} is unknown. Expected {expected}. Received: {value}")

    @property
    def title(self) -> str:
        """The score's name for people."""
        return SCORES[self.score]

    def fit(self, validated: Predictions, calibration: Calibration) -> "CaseRule":
        """Choose the threshold of the score on validation cases.

        Args:
            validated: The validation tiles.
            calibration: The rule of the tiles' threshold, which is taken for cases too; instead of a fixed one,
                `youden`, as a score is no probability.

        Returns:
            The same rule with its threshold; unchanged without a `truth`.
        """
        cases = by_case(validated, self)
        if self.truth is None or cases is None or not np.isfinite(cases.probability).all():
            return self
        rule = calibration.threshold if isinstance(calibration.threshold, str) else "youden"
        threshold = choose_threshold(rule, calibration.least_sensitivity, cases.probability, cases.malignant)
        return replace(self, threshold=threshold)


def case_rule(truth: str | None, score: str | None) -> CaseRule:
    """Make the rule that a user chose.

    Args:
        truth: See `CaseRule`.
        score: One of `SCORES`, given together with `truth`; None: the mean probability.

    Raises:
        UserError: One of them is unknown, or stands alone.
    """
    if (truth is None) != (score is None):
        raise UserError(
            f"case_truth=any and case_score belong together: which case is malignant, and how its tiles make its "
            f"score. Expected case_score of {', '.join(SCORES)} with case_truth=any. "
            f"Received: case_truth={truth} case_score={score}"
        )
    return CaseRule(truth, score or "mean")


def count_mixed_cases(predictions: Predictions) -> int:
    """Count the cases that have tiles of both classes; 0 where cases are unknown."""
    if not predictions.has_cases:
        return 0
    case = np.unique(predictions.case, return_inverse=True)[1]
    malignant = np.bincount(case, predictions.malignant)
    return int(((malignant > 0) & (malignant < np.bincount(case))).sum())


def by_case(predictions: Predictions, rule: CaseRule) -> Predictions | None:
    """Make one observation of each case.

    Args:
        predictions: Of tiles.
        rule: The truth, the score and the threshold of a case.

    Returns:
        One observation a case, its `probability` being the score; None where cases are unknown, or where the rule gives
        a case with tiles of both classes no truth.
    """
    if not predictions.has_cases or (rule.truth is None and count_mixed_cases(predictions)):
        return None
    names, first, case, counts = np.unique(predictions.case, return_index=True, return_inverse=True, return_counts=True)
    threshold = np.bincount(case, predictions.threshold) / counts
    return Predictions(
        path=names,
        case=names,
        group=predictions.group[first],
        malignant=np.bincount(case, predictions.malignant) > 0,
        probability=score_groups(predictions.probability, predictions.called, case, rule.score),
        threshold=threshold if rule.threshold is None else np.full(len(names), rule.threshold),
        novelty=np.full(len(names), np.nan),
    )


def summarize_cases(cases: Predictions | None, rule: CaseRule) -> dict[str, Any] | None:
    """Describe the results by case in plain values.

    Args:
        cases: As `by_case` returns them.
        rule: The truth, the score and the threshold of a case.

    Returns:
        As `Predictions.summary`, without what only probabilities have where a score was chosen; None without cases.
    """
    if cases is None:
        return None
    summary = cases.summary()
    if rule.truth is not None:
        summary |= dict.fromkeys(OF_PROBABILITIES)
        summary["intervals"] |= dict.fromkeys(OF_PROBABILITIES)
    return summary


def explain_cases(predictions: Predictions, rule: CaseRule) -> str | None:
    """Say why there is no result by case, or by which truth and score there is one.

    Args:
        predictions: Of tiles.
        rule: The truth, the score and the threshold of a case.

    Returns:
        A sentence; None where there is nothing to explain.
    """
    mixed = count_mixed_cases(predictions)
    if rule.truth is not None and predictions.has_cases:
        above = "" if rule.threshold is None else f"; malignant above {rule.threshold:.4g}, chosen on validation cases"
        return f"By case (case_truth={rule.truth}): malignant if any tile is; score: {rule.title}{above}."
    if mixed:
        return (
            f"Cases with tiles of both classes: {mixed} of {len(np.unique(predictions.case))}. Such a case has no "
            f"class of its own, so there is no result by case (case_truth=any case_score=max would define one)."
        )
    return None
