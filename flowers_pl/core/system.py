"""What the machine offers: cores, and the precision that it computes best in."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

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
    """Count the cores that this process may use, by its affinity and by the CPU quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, cpu_quota())))


def limit_threads() -> None:
    """Let torch compute on no more threads than there are cores, which it counts without the CPU quota."""
    if "OMP_NUM_THREADS" not in os.environ and available_cores() < torch.get_num_threads():
        torch.set_num_threads(available_cores())


def cpu_quota(root: Path = Path("/")) -> float:
    """Return how many cores the control groups of this process may keep busy: infinite without a quota.

    The quota of a group holds for all groups in it, so the smallest counts. Inside a container the path of
    its group may be that of the host, and the files those of the container, in the folder where they begin.

    Args:
        root: of the file system.
    """
    quotas = [math.inf]
    for folder in _control_groups(root):
        with suppress(OSError, ValueError, ZeroDivisionError):  # no such file; "max" and -1 are no quota
            quota, period = map(int, (folder / "cpu.max").read_text().split())
            quotas.append(quota / period)
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            quotas += [quota / period] if quota > 0 else []
    return min(quotas)


def _control_groups(root: Path) -> Iterator[Path]:
    """Yield the folders of this process's control groups (cgroup v1 and v2) and of all groups around them."""
    try:
        lines = (root / "proc/self/cgroup").read_text(errors="replace").splitlines()
    except OSError:  # not Linux
        return
    for controllers, path in (line.split(":", 2)[1:] for line in lines if line.count(":") >= 2):
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mount in ("", "unified") if not controllers else (controllers, "cpu"):
            base = root / "sys/fs/cgroup" / mount
            group = base / path.strip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(base))
