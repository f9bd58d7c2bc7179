"""Mistakes in keys and choices: one line that names what was probably meant."""

import pytest
from hydra.errors import CompactHydraException

from histo_pl.cli.mistakes import describe_mistake
from tests.conftest import compose_config


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        ("train", ["trainer.max_epoch=3"], "no such key. Did you mean trainer.max_epochs? Received: trainer.max_epoch"),
        ("train", ["data=table", "data.table_columns.lable=x"], "Did you mean data.table_columns.label?"),
        ("train", ["batch=3"], "Did you mean data.batch_size?"),
        ("predict", ["cpkt=latest"], "Did you mean ckpt?"),
        ("evaluate", ["nothing.like=1"], "python evaluate.py --cfg job lists all. Received: nothing.like"),
        (
            "train",
            ["data=foldr"],
            "no such choice of data. Expected one of breakhis, breast_cancer, demo, folder, table.",
        ),
        ("train", ["optim.lr"], "cannot be read"),
    ],
)
def test_a_mistake_is_one_line(program: str, arguments: list[str], message: str) -> None:
    with pytest.raises(CompactHydraException) as caught:
        compose_config(program, *arguments)
    found = describe_mistake(caught.value, program)
    assert found.startswith("Error: ") and message in found
    assert "\n" not in found
