"""Assessment of a trained model: what is chosen on the validation tiles, and the results on the tested ones."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from histo_pl.data import HistologyDataModule
from histo_pl.data.tile import Split, Tile
from histo_pl.errors import UserError
from histo_pl.evaluation.calibration import Calibration, Decision
from histo_pl.evaluation.cases import CaseRule, by_case, summarize_cases
from histo_pl.evaluation.predictions import Predictions
from histo_pl.evaluation.results import compute_results, predict_from_color, predictions_of

Logits = Mapping[Split, dict[str, float]]


@dataclass(frozen=True)
class Assessment:
    """Choices and predictions made of a model's logits.

    Attributes:
        predictions: Of the validation tiles and, where there are some, of the test tiles.
        baseline: The same tiles, predicted from colour alone; None: not computed.
        decision: The temperature, threshold and band, chosen on validation tiles.
        decision_tta: The same for the mean of eight views; None: not chosen.
        rule: The truth and the score of a case, with a threshold chosen on validation cases.
        calibration: The rules by which they were chosen.
    """

    predictions: Mapping[Split, Predictions]
    baseline: Mapping[Split, Predictions] | None
    decision: Decision
    decision_tta: Decision | None
    rule: CaseRule
    calibration: Calibration

    @property
    def reported(self) -> Split:
        """The split whose results are reported: the test or, where there is none, the validation."""
        return "test" if "test" in self.predictions else "val"

    def metadata(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of it, by the names of `TileClassifier`'s arguments."""
        tta = {} if self.decision_tta is None else asdict(self.decision_tta)
        return asdict(self.decision) | {"decision_tta": tta, "case_rule": asdict(self.rule)}

    def results(self) -> dict[str, Any]:
        """Compute the results, see `results.compute_results`, with those of the baseline."""
        found = compute_results(self.predictions[self.reported], self.decision, self.rule, self.reported)
        found["decision_tta"] = self.decision_tta and asdict(self.decision_tta)
        if self.baseline is None:
            return found | {"colour_only": None, "colour_only_by_case": None}
        rule = CaseRule(self.rule.truth, self.rule.score).fit(self.baseline["val"], self.calibration)
        tiles = self.baseline[self.reported]
        return found | {
            "colour_only": tiles.summary(),
            "colour_only_by_case": summarize_cases(by_case(tiles, rule), rule),
            "colour_only_case_rule": asdict(rule),
        }


def assess(
    data: HistologyDataModule,
    logits: Logits,
    logits_tta: dict[str, float] | None,
    calibration: Calibration,
    rule: CaseRule,
    *,
    color_baseline: bool,
) -> Assessment:
    """Choose temperature, thresholds and band on the validation tiles, and predict the tested ones.

    Args:
        data: Set up.
        logits: Of each tile's path, of the validation and of the test, if there is one.
        logits_tta: The mean logit of eight views of each validation tile; None: nothing is chosen for it.
        calibration: The rules of temperature, threshold and band.
        rule: The truth and the score of a case, its threshold yet to be chosen.
        color_baseline: Predict from colour alone too.

    Returns:
        The assessment.

    Raises:
        UserError: The threshold cannot be chosen from these tiles.
    """
    decision = _choose(calibration, data, logits["val"])
    decision_tta = None if logits_tta is None else _choose(calibration, data, logits_tta)
    predictions: dict[Split, Predictions] = {
        split: predictions_of(data, split, of_split, decision) for split, of_split in logits.items()
    }
    baseline = predict_from_color(data, predictions) if color_baseline else None
    rule = rule.fit(predictions["val"], calibration)
    return Assessment(predictions, baseline, decision, decision_tta, rule, calibration)


def _choose(calibration: Calibration, data: HistologyDataModule, logits: Mapping[str, float]) -> Decision:
    tiles = predictions_of(data, "val", logits, Decision())
    return calibration.choose(np.array([logits[path] for path in tiles.path.tolist()]), tiles.malignant)


def check_case_rule(rule: CaseRule, data: HistologyDataModule) -> None:
    """Refuse a truth by which no threshold can be chosen, before hours of training.

    Args:
        rule: The truth and the score of a case.
        data: Set up.

    Raises:
        UserError: There is such a truth, and no validation case of one of the classes.
    """
    if rule.truth is None:
        return
    malignant, benign = _cases_by_truth(data.tiles_of("val"), data.positive_class)
    if "" in malignant | benign or not malignant or not benign:
        all_malignant, all_benign = _cases_by_truth(data.tiles, data.positive_class)
        raise UserError(
            f"case_truth={rule.truth} needs validation cases of which some are malignant and some are not, as the "
            f"threshold of case_score={rule.score} is chosen on them. Name the cases by data.group_regex, raise "
            f"data.val_fraction, or do without case_truth where nearly every case has a malignant tile. "
            f"Received: {len(malignant)} malignant and {len(benign)} benign validation cases, of "
            f"{len(all_benign)} benign ones among {len(all_malignant | all_benign)} in all"
        )


def _cases_by_truth(tiles: Sequence[Tile], positive_class: str) -> tuple[set[str], set[str]]:
    """Tell the cases with a malignant tile from those without."""
    malignant = {tile.case for tile in tiles if tile.class_name == positive_class}
    return malignant, {tile.case for tile in tiles} - malignant
