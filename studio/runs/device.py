"""What this machine has to compute with, told without importing torch."""

import functools
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_DEVICES = ("/dev/nvidiactl", "/dev/kfd")  # NVIDIA's driver, AMD's


@functools.cache
def has_gpu() -> bool:
    """Whether torch will find a CUDA or ROCm device: a driver is there, and torch's build can use it."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}:
        return False
    try:
        build = version("torch")
    except PackageNotFoundError:
        return False
    return "+cpu" not in build and any(Path(device).exists() for device in _DEVICES)


@functools.cache
def physical_cores() -> int:
    """Cores this process may use; more threads than these slow a trainer down."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, allowed)


def thread_environment(processes: int = 1) -> dict[str, str]:
    """Variables for a child that computes, one of `processes` on these cores; what the person set stays.

    Idle threads sleep instead of spinning: beside other work, two spinning threads took 7 to 28 s for a
    picture that two sleeping ones drew in 0.7 s (measured on two cores with a load of 8).
    """
    threads = str(max(1, physical_cores() // processes))
    defaults = {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
    return {name: os.environ.get(name) or value for name, value in defaults.items()}


def memory_kills() -> int:
    """How many processes the kernel has killed for memory since boot; 0 where it does not say.

    Two readings around a death tell a host out of memory from any other SIGKILL.
    """
    try:
        counters = Path("/proc/vmstat").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in counters.splitlines() if line.startswith("oom_kill ")), 0)
