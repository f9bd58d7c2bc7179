"""Files of weights from elsewhere: old ones are read, broken ones refused, and none is run."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torchvision.models import resnet18

from histo_pl.errors import UserError
from histo_pl.models.pretrained import load_encoder, resolve_model_config
from tests.test_storage import Harm

TORCHVISION: dict[str, Any] = {"name": "resnet18"}


@pytest.fixture(params=["timm", "torchvision"])
def model_config(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param == "torchvision":
        return TORCHVISION
    wanted = {"name": "timm", "architecture": "resnet10t", "arguments": {}, "mean": None, "std": None}
    return resolve_model_config(wanted, 64)


@pytest.mark.parametrize("of_today", [True, False])
def test_a_file_that_holds_code_is_not_run(model_config: dict[str, Any], of_today: bool, tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    torch.save({"state_dict": Harm(tmp_path / "marker")}, file, _use_new_zipfile_serialization=of_today)
    with pytest.raises(UserError) as caught:
        load_encoder(model_config, str(file))
    assert not (tmp_path / "marker").exists()
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "holds code" in str(caught.value)


def test_a_file_of_an_old_pytorch_is_read(model_config: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = resnet18() if model_config is TORCHVISION else timm.create_model(model_config["architecture"])
    theirs = network.state_dict()
    torch.save(theirs, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    state, title = load_encoder(model_config, str(tmp_path / "x.pth"))
    assert title == str(tmp_path / "x.pth")
    assert theirs.keys() - state.keys() == {"fc.weight", "fc.bias"}
    assert all(torch.equal(weight, theirs[name]) for name, weight in state.items())


@pytest.mark.parametrize(
    "content", [b"", b"no weights", b"\x40" + bytes(7) + b"{" * 64], ids=["empty", "text", "header"]
)
def test_broken_safetensors_are_one_clear_error(model_config: dict[str, Any], content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        load_encoder(model_config, str(file))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
