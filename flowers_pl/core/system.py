"""What the machine offers: cores, and the precision that it computes best in."""

from __future__ import annotations

import os
import platform

import torch


def best_precision(accelerator: str = "auto") -> str:
    """Return the default of `--trainer.precision`: "bf16-mixed" if the hardware multiplies bfloat16, else
    "32-true".

    Weights, optimizer state and losses stay float32. GPUs multiply bfloat16 from compute capability 8.0 on,
    CPUs with AMX or AVX-512 BF16; elsewhere it is emulated, and slower than float32.

    Args:
        accelerator: as the Trainer takes it.

    >>> best_precision("cpu") in ("bf16-mixed", "32-true")
    True
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif accelerator in ("auto", "cpu"):
        tests = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # of torch.cpu, not public yet
        fast = (
            any(getattr(torch.cpu, test, bool)() for test in tests) and not torch.backends.mps.is_available()
        )
    else:
        fast = False
    return "bf16-mixed" if fast else "32-true"


def processor() -> str:
    """Name this processor and the instructions that torch uses: "x86_64 (AVX2)"."""
    return f"{platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"


def available_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
