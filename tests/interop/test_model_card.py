import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from histo_pl import UserError, load_model, save_model
from histo_pl.__main__ import main
from histo_pl.interop.model_card import facts_of_card, format_card


def test_the_card_of_the_demo_says_synthetic_and_agrees_with_its_results(trained: Path, capsys: Any) -> None:
    main(["card", str(trained)])
    card = capsys.readouterr().out
    results = json.loads((trained / "results.json").read_text())
    assert "**Synthetic:**" in card and "- synthetic" in card
    assert f"| AUROC | {results['test']['auroc']:.3f}".replace(" 0.", " .") in card
    for split, counts in results["data"]["parts"].items():
        assert f"| {split} | {counts['tiles']} | {counts['malignant']} | {counts['cases']} |" in card
    assert "TRIPOD+AI" in card and "unknown" in card
    assert results["data"]["root"] not in card  # a path of this machine


def test_hugging_face_reads_the_metadata(trained: Path) -> None:
    card = ModelCard(format_card(trained / "best.ckpt", load_model(trained)))
    head = card.data.to_dict()
    assert head["library_name"] == "histo_pl" and head["license"] == "unknown"
    results = json.loads((trained / "results.json").read_text())
    found = {one.metric_type: one.metric_value for one in card.data.eval_results}
    assert found["roc_auc"] == round(results["test"]["auroc"], 4)


def test_names_of_the_user_break_neither_the_metadata_nor_a_table(trained: Path, tmp_path: Path) -> None:
    model = load_model(trained)
    name = 'A "quoted": name | with\n# everything <b>'
    model = replace(model, data=model.data | {"name": name, "positive_class": "a|b"})
    save_model(model, tmp_path / "best.ckpt")
    shutil.copy(trained / "results.json", tmp_path)
    card = format_card(tmp_path / "best.ckpt", model)
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["model-index"][0]["results"][0]["dataset"]["type"] == name
    assert "\n# everything" not in card and "a\\|b" in card and "<b>" not in card.split("---\n")[2]


def test_results_of_another_model_are_not_taken(trained: Path, tmp_path: Path) -> None:
    model = load_model(trained)
    for name, changed in (("theirs.ckpt", model), ("best.ckpt", replace(model, threshold=0.3))):
        save_model(changed, tmp_path / name)
        shutil.copy(trained / "results.json", tmp_path)
        facts = facts_of_card(tmp_path / name, changed)
        assert facts["results"] is None and facts["threshold"] == changed.threshold
        assert "no results of this very checkpoint" in format_card(tmp_path / name, changed)


def test_what_an_older_checkpoint_lacks_is_unknown(trained: Path, tmp_path: Path) -> None:
    model = load_model(trained)
    data = {key: model.data[key] for key in ("name", "synthetic", "negative_class", "positive_class")}
    model = replace(model, data=data | {"parts": None, "split": None}, novelty=None)
    save_model(model, tmp_path / "old.ckpt")
    card = format_card(tmp_path / "old.ckpt", model)
    assert "Parts, tiles and patients: unknown." in card and "scale unknown" in card
    assert "answers for anything" in card


def test_damaged_results_are_said(trained: Path, tmp_path: Path) -> None:
    shutil.copy(trained / "best.ckpt", tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(UserError, match="results are damaged"):
        format_card(tmp_path / "best.ckpt", load_model(tmp_path))
