import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from histo_pl import hardware
from histo_pl.benchmark.limits import limits, work_of
from histo_pl.errors import UserError
from histo_pl.models import KerasCNN, keras_cnn
from histo_pl.models.ensemble import load_model

HELD = """
import sys, torch
from pathlib import Path
from histo_pl.hardware import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.ones(100_000_000, dtype=torch.uint8)
status = Path("/proc/self/status").read_text()
print(next(int(line.split()[1]) / 1e6 for line in status.splitlines() if line.startswith("RssAnon")))
"""

RunTraining = Callable[..., dict[str, Any]]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_freed_memory_is_kept_if_asked() -> None:
    def held(mode: str) -> float:
        done = subprocess.run([sys.executable, "-c", HELD, mode], capture_output=True, text=True, check=True)
        return float(done.stdout)

    assert held("keep") - held("return") > 0.08


def test_mixed_precision_is_chosen_by_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(hardware, "multiplies_bfloat16", lambda: True)
    assert hardware.fast_precision() == "bf16-mixed"
    monkeypatch.setattr(hardware, "multiplies_bfloat16", lambda: False)
    assert hardware.fast_precision() == "32-true"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert hardware.fast_precision("cpu") == "32-true"


def test_a_processor_that_pytorch_says_nothing_of_takes_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions are private: a release may drop them."""
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, name)
    assert not hardware.multiplies_bfloat16()


@pytest.mark.parametrize("size", [22, 45, 64])
def test_the_blocked_layout_changes_no_number(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network, images = KerasCNN(size), torch.rand(3, 3, size, size)
    found = []
    for blocked in (True, False):
        monkeypatch.setattr(keras_cnn, "X86", blocked)
        network.zero_grad()
        logits = network(images)
        logits.sum().backward()
        found.append(
            [logits.detach(), *(weight.grad.clone() for weight in network.parameters() if weight.grad is not None)]
        )
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


def test_the_order_of_channels_changes_no_answer(run_training: RunTraining, trained: Path, tmp_path: Path) -> None:
    run_training("trainer.channels_last=true", "colour_baseline=false", folder="a")
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    logits = [load_model(folder / "best.ckpt").network(images) for folder in (tmp_path / "a", trained)]
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)


def test_a_wrong_matmul_precision_is_refused(run_training: RunTraining) -> None:
    with pytest.raises(UserError, match=r"Expected one of highest, high, medium\. Received: low"):
        run_training("trainer.matmul_precision=low")


@pytest.mark.slow
def test_a_compiled_network_trains_alike_and_its_checkpoint_loads(run_training: RunTraining, tmp_path: Path) -> None:
    ours = run_training("trainer.compile=true", folder="a")["validation"]["loss"]
    assert ours == pytest.approx(run_training(folder="b")["validation"]["loss"], abs=1e-4)
    assert load_model(tmp_path / "a" / "best.ckpt").image_size == 32


def test_the_arithmetic_of_a_step_is_counted() -> None:
    """By hand, of all layers at 22 pixels: the backward pass takes twice the forward, less the images' gradient."""
    convolutions = [20**2 * 32 * 3 * 9, 8**2 * 64 * 32 * 9, 2**2 * 128 * 64 * 9]
    dense = [128 * 256, 256]
    forward = 2 * 5 * sum(convolutions + dense)
    backward = 2 * forward - 2 * 5 * convolutions[0]
    work = work_of({"name": "keras_cnn", "image_size": 22}, 5, mixed=False)
    assert work["step_flops"] == forward + backward
    weights = sum(weight.numel() for weight in KerasCNN(22).parameters())
    assert work["step_bytes"] > (28 + 3 * 4) * weights


def test_a_device_has_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    from histo_pl.benchmark import limits as module

    monkeypatch.setattr(module, "SIDE", {"cpu": 256})
    monkeypatch.setattr(module, "COPIED", {"cpu": 2**22})
    found = limits("cpu", mixed=False)
    assert 1e8 < found["flops"] < 1e15 and 1e7 < found["bandwidth"] < 1e13
