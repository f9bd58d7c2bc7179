"""Every command of the README and of the guides is run, on tiny tiles; a GPU's runs on the processor instead."""

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from histo_pl.__main__ import main
from histo_pl.cli.build import training_arguments
from histo_pl.cli.command_line import quote_literals
from histo_pl.inference.run import predict
from histo_pl.models.checkpoint import load_checkpoint, save_model
from tests.conftest import ROOT, TINY, TINY_DEMO, compose_config, draw_image, evaluate, train
from tests.inference.test_slides import draw_slide
from tests.serving.server import Server
from tests.slides.test_readers import write_pyramid

PAGES = (
    "README.md",
    *(f"docs/{name}.md" for name in "clusters handover keras limits pretrained running serving slides speed".split()),
)
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
README = TEXTS["README.md"]
BLOCKS = [block for text in TEXTS.values() for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)]
LINES = list(dict.fromkeys(re.sub(r" +# .*", "", line).strip() for block in BLOCKS for line in block.splitlines()))
COMMANDS = [line for line in LINES if line.startswith("python ")]
ON_THE_PROCESSOR = ("trainer.accelerator=cpu", "trainer.devices=1", "trainer.strategy=auto")


def arguments_of(command: str) -> list[str]:
    return quote_literals(shlex.split(command, comments=True)[2:], {})


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """Tiles of ten patients whose names also suit BreakHis's expression."""
    for letter, class_name in (("B", "benign"), ("M", "malignant")):
        for number in range(20):
            name = (
                f"SOB_{letter}_A-14-{number % 5}{ord(letter)}AB-200-{number:03}_patient{number % 5}{letter}_mpp0.5.png"
            )
            draw_image(tmp_path / "tiles" / class_name / name, number)
    return tmp_path / "tiles"


@pytest.mark.parametrize(
    "command",
    [c for c in COMMANDS if c.startswith("python train.py") and "resume=" not in c and "crossval" not in c],
)
def test_train_commands(
    command: str, trained: Path, tiles: Path, demo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start = trained
    if "experiment=finetune" in command and "model.weights=" in command:
        start = tmp_path / "probe"
        train(
            compose_config(
                "train", "experiment=linear_probe", f"data.root={demo_root}", *TINY_DEMO, *TINY, f"run_dir={start}"
            )
        )
    arguments = [
        f"model.weights={start / 'best.ckpt'}" if argument.startswith("model.weights=") else argument
        for argument in arguments_of(command)
    ]
    draws = "data=" not in command or "data=demo" in command
    own = [f"data.root={demo_root}", *TINY_DEMO] if draws else [f"data.root={tiles}"]
    tiny = [*own, *(option for option in TINY if option != "trainer=cpu"), *ON_THE_PROCESSOR]
    if "--help" in arguments:
        program = [sys.executable, str(ROOT / "train.py"), *arguments]
        subprocess.run(program, cwd=tmp_path, check=True, capture_output=True)
    elif "-m" in arguments:  # a sweep is run in tests/training; here each of its jobs is composed
        key, _, values = arguments[1].partition("=")
        for value in values.split(","):
            training_arguments(compose_config("train", f"{key}={value}", *tiny, "run_dir=run"))
    else:
        config = compose_config("train", *arguments, *tiny, f"run_dir={tmp_path / 'run'}")
        assert train(config)["test"]["tiles"] > 0


def test_resume_command() -> None:
    """The README spells `resume=` rightly; its effect is tested in tests/training."""
    for command in (c for c in COMMANDS if "resume=" in c):
        arguments = [argument for argument in arguments_of(command) if argument != "-m"]
        resume = compose_config("train", *arguments).resume
        assert resume in ("outputs/DAY/TIME", "multirun/DAY/TIME", "auto", "own")


@pytest.mark.parametrize("command", [c for c in COMMANDS if re.match(r"python predict\.py (?!.*(shard|engine)=)", c)])
def test_predict_commands(
    command: str, trained: Path, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config: Any = OmegaConf.to_container(compose_config("predict", *arguments_of(command)))
    assert config["ckpt"] in ("latest", "multirun/DAY/TIME") or config["ckpt"].endswith((".ckpt", ".onnx"))
    shows_slides = any(word in config["img"] for word in ("slide", "photo"))
    if shows_slides:
        write_pyramid(tmp_path / "slide.tiff", draw_slide(), 0.5)
        (tmp_path / "slides.csv").write_text("slide,mpp\nslide.tiff,0.5\n")
        tiles = tmp_path / "slide.tiff"
    elif config["explain"]:
        tiles = next(tiles.rglob("*.png"))
    model = load_checkpoint(trained)
    save_model(replace(model, data=model.data | {"mpp": 0.5}), tmp_path / "own.ckpt")
    assert predict(**config | {"ckpt": "own.ckpt", "img": str(tiles)}) == 0
    assert config["out"] is None or Path(config["out"]).exists()
    assert Path("predictions").is_dir() == (config["out"] is None and (shows_slides or config["explain"]))


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python train.py") and "crossval" in c])
def test_cross_validation_commands(command: str, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two folds' runs; that one command does them all is tested in tests/evaluation."""
    monkeypatch.chdir(tmp_path)
    tiny = [f"data.root={tiles}", *(option for option in TINY if option != "trainer=cpu"), *ON_THE_PROCESSOR]
    for fold in range(2):
        folder = tmp_path / str(fold)
        train(compose_config("train", *arguments_of(command), *tiny, f"data.fold={fold}", f"run_dir={folder}"))
    main(["summarize", str(tmp_path)])
    assert (tmp_path / "summary.json").is_file()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python evaluate.py")])
def test_evaluate_commands(command: str, trained: Path, tiles: Path, tmp_path: Path) -> None:
    own = [f"ckpt={trained}", f"data.root={tiles}", "data.num_workers=0", f"run_dir={tmp_path / 'run'}"]
    assert evaluate(compose_config("evaluate", *arguments_of(command), *own))["test"]["tiles"] == 40


def test_shard_and_merge_commands(trained: Path, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (line,) = (c for c in COMMANDS if c.startswith("python predict.py") and "shard=" in c)
    config: Any = OmegaConf.to_container(compose_config("predict", *arguments_of(line)))
    assert config["shard"] == "3/16"
    for number in range(1, 17):
        assert predict(**config | {"ckpt": str(trained), "img": str(tiles), "shard": f"{number}/16"}) == 0
    (merge,) = (shlex.split(c)[3:] for c in COMMANDS if c.startswith("python -m histo_pl merge"))
    main(merge)
    assert (tmp_path / "opinions" / "predictions.csv").read_text().count("\n") == 41


def test_ray_command() -> None:
    """It is run by tests/inference/test_ray.py: here, that the page spells it rightly."""
    (line,) = (c for c in COMMANDS if "engine=" in c)
    assert compose_config("predict", *arguments_of(line)).engine == "ray"


def test_sweep_commands(tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = [option for option in TINY if not option.startswith("trainer=")]
    for command in (c for c in COMMANDS if c.startswith("python -m histo_pl sweep")):
        arguments = shlex.split(command)[3:]
        trials = "2" if "--trials" in arguments else "1"
        own = [argument for argument in arguments if argument not in ("--trials", "40")]
        main([*own, *tiny, "trainer.accelerator=cpu", "--trials", trials])
    assert (tmp_path / "study" / "trials" / "1" / "results.json").is_file()


def test_audit_and_summarize_commands(tiles: Path, tmp_path: Path) -> None:
    """The audit, altered copies included, is tested in test_audit, and summarize above: here, what they are given."""
    audited, summarized = (
        shlex.split(c, comments=True)[3:]
        for c in COMMANDS
        if c.startswith(("python -m histo_pl audit", "python -m histo_pl summ"))
    )
    assert audited[:2] == ["audit", "tiles"] and summarized == ["summarize", "multirun/DAY/TIME"]
    main(["audit", str(tiles), *audited[2:], "--exact-only", "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "groups.csv").is_file()


def test_convert_commands(trained: Path, tmp_path: Path) -> None:
    """From a checkpoint to Keras and back: what the README's two lines do."""
    there, back = (shlex.split(c, comments=True)[3:] for c in COMMANDS if c.startswith("python -m histo_pl convert"))
    assert [Path(file).suffix for file in (*there[1:], *back[1:])] == [".h5", ".ckpt", ".ckpt", ".h5"]
    main(["convert", str(trained / "best.ckpt"), str(tmp_path / back[2])])
    main(["convert", str(tmp_path / back[2]), str(tmp_path / there[2])])
    assert predict(str(tmp_path / there[2]), str(draw_image(tmp_path / "tile.png"))) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c.startswith(("python -m histo_pl export", "python -m histo_pl card"))]
)
def test_export_and_card_commands(
    command: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [str(trained) if argument == "latest" else argument for argument in shlex.split(command)[3:]]
    main(arguments)
    told = capsys.readouterr().out
    assert told.startswith("---\nlibrary_name") if arguments[0] == "card" else Path(arguments[2], "README.md").is_file()


@pytest.mark.slow
def test_serve_commands(trained: Path, tmp_path: Path) -> None:
    """Each is started as it stands, on a free port; curl asks the first."""
    (ask,) = (line for line in LINES if line.startswith("curl"))
    draw_image(tmp_path / "tile.png", size=(32, 32))
    for line in (line for line in LINES if "histo_pl serve" in line):
        command = line.replace("latest", str(trained)).replace("--port 8080", "") + " --port 0"
        command = (
            f"exec {command}" if command.startswith("python") else command.replace(" python -m", " exec python -m")
        )
        server = Server(command)
        try:
            told = subprocess.check_output(
                shlex.split(ask.replace(":8000", f":{server.port}")), stderr=subprocess.DEVNULL, text=True, cwd=tmp_path
            )
            assert ('"label"' if "TOKEN" not in line else "The token is missing") in told
        finally:
            server.stop()


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c.startswith(("python -m histo_pl recal", "python -m histo_pl robust"))]
)
def test_recalibrate_and_robustness_commands(
    command: str, trained: Path, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = {"latest": str(trained), "multirun/DAY/TIME": str(trained), "tiles": str(tiles)}
    arguments = [own.get(argument, argument) for argument in shlex.split(command, comments=True)[3:]]
    main(arguments)
    assert (tmp_path / "theirs.ckpt").exists() or next(tmp_path.glob("robustness/*/*/robustness.csv"))


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python docs/")])
def test_scripts_behind_the_figures(command: str) -> None:
    script = ROOT / shlex.split(command)[1]
    told = subprocess.run([sys.executable, script, "--help"], check=True, capture_output=True, text=True).stdout
    assert "TILES" in told


def test_benchmark_command() -> None:
    """It takes minutes: test_benchmark runs a small one. Here, that the README spells it rightly."""
    (command,) = (c for c in COMMANDS if c.startswith("python -m histo_pl benchmark"))
    assert shlex.split(command, comments=True)[3:] == ["benchmark"]


def test_every_command_is_of_a_kind_that_is_tested() -> None:
    set_up = [line for line in LINES if line.startswith("pip install -e")]
    assert set_up == [
        "pip install -e . && python train.py trainer.max_epochs=20",
        "pip install -e '.[test]' && pytest",
        "pip install -e '.[sweep]'",
        "pip install -e '.[onnx]'",
        "pip install -e '.[keras]'",
        "pip install -e '.[serve]'",
        "pip install -e '.[slides]'",
    ]
    known = (
        "python train.py",
        "python predict.py",
        "python evaluate.py",
        "python -m histo_pl audit",
        "python -m histo_pl benchmark",
        "python -m histo_pl card",
        "python -m histo_pl convert",
        "python -m histo_pl export",
        "python -m histo_pl merge",
        "python -m histo_pl sweep",
        "python -m histo_pl serve",
        "HISTO_PL_TOKEN=",
        "curl",
        "python -m histo_pl recalibrate",
        "python -m histo_pl robustness",
        "python docs/",
        "python -m histo_pl summarize",
        "python -m venv",
        "pip install -e",
        "#",
    )
    assert [line for line in LINES if line and not line.startswith(known)] == []


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_every_link_leads_to_a_file(page: Path) -> None:
    links = set(re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_readme_is_short_and_names_every_room() -> None:
    assert README.count("\n") < 240
    tree = README[README.index("## Architecture") :]
    for room in (path.parent.name for path in (ROOT / "histo_pl").glob("*/__init__.py")):
        assert f"  {room}/" in tree


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert all(f"]({page.name})" in index for page in (ROOT / "docs").glob("*.md") if page.name != "README.md")


def test_the_python_of_the_readme_runs(tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(block.splitlines()) < 25
    shutil.copytree(tiles, tmp_path / "other_hospital")
    shutil.copy(next(tiles.rglob("*.png")), tmp_path / "tile.png")
    monkeypatch.chdir(tmp_path)
    variables: dict[str, Any] = {}
    exec(block, variables)
    assert variables["run"]["test"]["tiles"] > 0
    assert variables["elsewhere"]["test"]["tiles"] > 0


def test_the_architecture_names_every_module() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| (\w+\.py) \|", page, re.MULTILINE)
    modules = [file.name for file in (ROOT / "histo_pl").rglob("*.py") if file.name != "__init__.py"]
    assert sorted(named) == sorted(modules)
