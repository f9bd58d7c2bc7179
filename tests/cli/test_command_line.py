import gc
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from histo_pl.cli.command_line import fast_imports, one_line_errors, quote, quote_literals
from histo_pl.errors import UserError
from tests.conftest import ROOT, compose_config

ODD_NAMES = [
    "odd, name (1) = [x] 'q' é.png",
    "My tiles (v2)",
    "a=b",
    'double "quotes"',
    "back\\slash",
    "ends with \\",
    "\\'",
    "\\\\' two",
    "${not_a_variable}",
    "{braces}",
    "null and void",
    "ü 微 ♥",
    " leading and trailing ",
    "tiles/*.png",
    "patient[0-9]+/(\\d+)",
    "1e3",
    "true",
    "",
]


def as_hydra_reads(argument: str) -> str:
    override = OverridesParser.create().parse_override(argument)
    return OmegaConf.create({"x": override.value()}).x


@pytest.mark.parametrize("program", ["train.py", "predict.py", "evaluate.py", "-m histo_pl"])
def test_help_waits_for_no_import_of_pytorch(program: str) -> None:
    command = [sys.executable, "-X", "importtime", *program.split(), "--help"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "histo_pl" in told.stderr and not re.search(r"\| +(torch|lightning)\n", told.stderr)


def test_only_the_first_job_of_a_sweep_keeps_its_garbage() -> None:
    gc.unfreeze()
    try:
        with fast_imports():
            assert not gc.isenabled()
        kept = gc.get_freeze_count()
        with fast_imports():
            assert gc.isenabled()
        assert gc.isenabled() and gc.get_freeze_count() == kept > 0
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_reaches_the_program_as_it_was_typed(name: str) -> None:
    (argument,) = quote_literals([f"img={name}"], {})
    assert as_hydra_reads(argument) == name


def test_the_home_folder_is_meant_by_a_tilde() -> None:
    (argument,) = quote_literals(["data.root=~/tiles"], {})
    assert as_hydra_reads(argument) == str(Path.home() / "tiles")


def test_other_arguments_are_left_alone() -> None:
    arguments = ["trainer.max_epochs=3", "optim.betas=[0.9,0.99]", "-m", "img", "~callbacks.last", "resume=null"]
    assert quote_literals(arguments, {}) == arguments


def test_what_the_user_quoted_is_left_alone_unless_the_quotes_are_in_the_name(tmp_path: Path) -> None:
    assert quote_literals(["data.root='My tiles (v2)'"], {}) == ["data.root='My tiles (v2)'"]


def test_in_a_multirun_commas_sweep_unless_such_a_path_exists(tmp_path: Path) -> None:
    (tmp_path / "a,b").mkdir()
    sweep, path = "data.split_file=a.csv,b.csv", f"data.root={tmp_path}/a,b"
    assert quote_literals(["-m", sweep, path], {}) == ["-m", sweep, f"data.root={quote(str(tmp_path / 'a,b'))}"]
    regex = r"data.group_regex=(\d{1,2})"
    assert as_hydra_reads(quote_literals(["-m", regex], {})[1]) == r"(\d{1,2})"


def test_a_process_that_lightning_started_is_not_quoted_again() -> None:
    assert quote_literals(["img='a b'"], {"LOCAL_RANK": "1"}) == ["img='a b'"]


def test_arguments_of_torchrun_are_those_that_were_typed() -> None:
    """It sets LOCAL_RANK too, but has no launcher that quoted them."""
    (argument,) = quote_literals(["img=a (b)"], {"LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "none"})
    assert as_hydra_reads(argument) == "a (b)"


@pytest.mark.parametrize("key", ["data.cache_dir", "run_dir", "embeddings.store.folder"])
def test_every_path_is_taken_as_typed(key: str) -> None:
    (argument,) = quote_literals([f"{key}=my disk (2)/x"], {})
    assert as_hydra_reads(argument) == "my disk (2)/x"


def test_a_mistake_ends_in_one_line_even_where_hydra_wraps_it() -> None:
    with pytest.raises(SystemExit, match=r"^Error: what happened$"), one_line_errors():
        raise RuntimeError("wrapped") from UserError("what happened")


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), one_line_errors():
        raise ZeroDivisionError


def test_an_error_from_a_loaders_worker_is_its_message_alone() -> None:
    reraised = UserError("Caught UserError in worker process 0.\nTraceback ...\nhisto_pl.errors.UserError: no image\n")
    assert str(reraised) == "no image"


def test_a_column_of_any_name_is_added_with_its_expression_as_typed() -> None:
    (argument,) = quote_literals([r"data.columns.scanner=scan-(\w+),x"], {})
    assert argument.startswith("++data.columns.scanner=")
    config = compose_config("evaluate", argument)
    assert config.data.columns == {"scanner": r"scan-(\w+),x"}
