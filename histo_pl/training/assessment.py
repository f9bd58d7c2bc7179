"""Assessment of a trained model: what is chosen on the validation tiles, and the results on the tested ones."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from histo_pl.data import HistologyDataModule
from histo_pl.data.tile import Split, Tile
from histo_pl.errors import UserError
from histo_pl.evaluation.calibration import Calibration, Decision
from histo_pl.evaluation.cases import CaseRule, by_case, summarize_cases
from histo_pl.evaluation.predictions import Predictions
from histo_pl.evaluation.results import compute_results, predict_from_color, predictions_of
from histo_pl.models.novelty import Novelty, NoveltyRule
from histo_pl.training.answers import Answers, ByPath


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
        novelty: The model of the training tiles, its limit chosen on validation tiles; None: not known.
        novelty_by_split: The novelty of a sample of training tiles, of the validation and the test; empty without it.
    """

    predictions: Mapping[Split, Predictions]
    baseline: Mapping[Split, Predictions] | None
    decision: Decision
    decision_tta: Decision | None
    rule: CaseRule
    calibration: Calibration
    novelty: Novelty | None
    novelty_by_split: Mapping[Split, ByPath]

    @property
    def reported(self) -> Split:
        """The split whose results are reported: the test or, where there is none, the validation."""
        return "test" if "test" in self.predictions else "val"

    def metadata(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of it, by the names of `TileClassifier`'s arguments."""
        tta = {} if self.decision_tta is None else asdict(self.decision_tta)
        chosen = {"decision_tta": tta, "case_rule": asdict(self.rule)}
        return asdict(self.decision) | chosen | {"novelty": self.novelty and self.novelty.metadata()}

    def results(self) -> dict[str, Any]:
        """Compute the results, see `results.compute_results`, with those of the baseline."""
        found = compute_results(self.predictions[self.reported], self.decision, self.rule, self.reported)
        found["decision_tta"] = self.decision_tta and asdict(self.decision_tta)
        if self.novelty is not None and found["novelty"]:
            found["novelty"] |= self.novelty.describe_limit()
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
    answers: Answers,
    logits_tta: ByPath | None,
    calibration: Calibration,
    rule: CaseRule,
    novelty_rule: NoveltyRule | None,
    *,
    color_baseline: bool,
) -> Assessment:
    """Choose temperature, thresholds and band on the validation tiles, and predict the tested ones.

    Args:
        data: Set up.
        answers: About the validation and the test, if there is one.
        logits_tta: The mean logit of eight views of each validation tile; None: nothing is chosen for it.
        calibration: The rules of temperature, threshold and band.
        rule: The truth and the score of a case, its threshold yet to be chosen.
        novelty_rule: The share of tiles that the limit of novelty may refuse; None: no novelty.
        color_baseline: Predict from colour alone too.

    Returns:
        The assessment.

    Raises:
        UserError: The threshold cannot be chosen from these tiles.
    """
    decision = _choose(calibration, data, answers.logits["val"])
    decision_tta = None if logits_tta is None else _choose(calibration, data, logits_tta)
    novelty, by_split = _limit_novelty(answers, novelty_rule)
    predictions: dict[Split, Predictions] = {
        split: predictions_of(data, split, of_split, decision, by_split.get(split))
        for split, of_split in answers.logits.items()
    }
    baseline = predict_from_color(data, predictions) if color_baseline else None
    rule = rule.fit(predictions["val"], calibration)
    return Assessment(predictions, baseline, decision, decision_tta, rule, calibration, novelty, by_split)


def _limit_novelty(answers: Answers, rule: NoveltyRule | None) -> tuple[Novelty | None, Mapping[Split, ByPath]]:
    """Choose the limit on validation tiles, and divide all distances by it."""
    if rule is None or answers.novelty is None:
        return None, {}
    validated = torch.tensor(list(answers.distances["val"].values()))
    novelty = answers.novelty.with_limit(validated, rule.false_alarm)
    return novelty, {
        split: {path: distance / novelty.limit for path, distance in of_split.items()}
        for split, of_split in answers.distances.items()
    }


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
