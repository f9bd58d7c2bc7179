"""Properties of the machine at hand: cores, fast number formats, memory allocation."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

# mallopt's parameters, from glibc's malloc.h, and what they are set to.
_KEEP = {
    -4: 0,  # M_MMAP_MAX: no block is borrowed from the system for itself alone, to be returned when it is freed
    -1: -1,  # M_TRIM_THRESHOLD: the end of the heap is never returned
    -2: 256 * 2**20,  # M_TOP_PAD: bytes more than needed that the heap grows by
}


def keep_freed_memory() -> bool:
    """Tell glibc to keep the memory that the program frees, and use it again.

    By default every large tensor is borrowed from the system and returned, and the next one's pages are cleared and
    mapped anew: on the processor that is half of a training step (docs/benchmarks.md). The process stays as large as
    it was at its largest.

    Returns:
        True if it was done; elsewhere than on glibc nothing is.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    return all(libc.mallopt(parameter, value) for parameter, value in _KEEP.items())


def set_float32_precision(precision: str) -> None:
    """Set the precision of float32 products and convolutions on a GPU, for the whole process.

    PyTorch's own default rounds a convolution's factors to TF32, 10 bits, even where products are to be exact.

    Args:
        precision: `highest`: float32; `high` or `medium`: TF32 or less, see `torch.set_float32_matmul_precision`.
    """
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision != "highest"


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute convolutions in float32 on a GPU too, so that a model answers there as on a processor."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Leave the mixed precision of a training, for what needs more than bfloat16's 8 bits."""
    if not torch.amp.is_autocast_available(device_type):  # such as meta
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def fast_precision(accelerator: str = "auto") -> str:
    """Choose the mixed precision that this machine computes faster than float32.

    Args:
        accelerator: Lightning's name of the device: cpu, or another for a GPU if there is one.

    Returns:
        Lightning's name: bf16-mixed where a GPU, or else the processor (AMX, AVX512-BF16), multiplies bfloat16;
        16-mixed on an older GPU; 32-true on other processors, where bfloat16 would take several times as long.
    """
    on_gpu = accelerator != "cpu"
    if on_gpu and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    if (on_gpu and torch.backends.mps.is_available()) or multiplies_bfloat16():
        return "bf16-mixed"
    return "32-true"


def multiplies_bfloat16() -> bool:
    """Tell if the processor has instructions for products of bfloat16; False where PyTorch does not say it."""
    return processor_class() in ("AMX", "AVX512_BF16")


def processor_class() -> str:
    """Name the processor's instructions for products: AMX, AVX512_BF16, or PyTorch's name of its lesser ones."""
    # Private functions, which a release may drop.
    names = {"AMX": "_is_amx_tile_supported", "AVX512_BF16": "_is_avx512_bf16_supported"}
    checks = {name: getattr(torch.cpu, function, None) for name, function in names.items()}
    found = (name for name, check in checks.items() if check is not None and check())
    return next(found, torch.backends.cpu.get_cpu_capability())


def release_freed_memory() -> None:
    """Give memory that was freed back to the system, where the C library is glibc; some milliseconds."""
    release = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if release is not None:
        release(0)


def usable_cores() -> int:
    """Return the number of processor cores that this process may use, at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
