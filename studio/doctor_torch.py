"""The doctor's child: loads torch, runs one real kernel and one real 8-bit optimizer step on each device.

    python -m studio.doctor_torch        prints a JSON list of checks

A package that imports is no proof: a build without kernels for the card, or a driver of the wrong age, fails
only when something is computed.
"""

import json
import shutil
import sys
from collections.abc import Callable
from typing import Any

SIDE = 256  # of the matrices
TOLERANCE = 1e-3  # of a mean of SIDE products in fp32; TF32 stays below it
CPU_BUILD = "install the CUDA build: pip install torch --index-url https://download.pytorch.org/whl/cu128"

Finding = dict[str, str]


def check(name: str, status: str, value: str, fix: str = "") -> Finding:
    """One finding, in the form of `studio.doctor.Check`."""
    return {"name": name, "status": status, "value": value, "fix": fix}


def report() -> list[Finding]:
    """All findings about torch and the devices it sees."""
    import torch

    found = [check("torch", "ok", _build(torch))]
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if not devices:
        found.append(_no_gpu(torch))
    for device in devices or [torch.device("cpu")]:
        label = f"GPU {device.index}" if device.type == "cuda" else "CPU kernel"
        found.append(_tried(label, lambda device=device: _kernel(torch, device), "update the driver"))
        found.append(_tried(f"8-bit optimizer on {device}", lambda device=device: _optimizer(torch, device),
                            "use optimizer.name=adamw, or install bitsandbytes again"))  # fmt: skip
    return found


def _build(torch: Any) -> str:
    kinds = (("CUDA", torch.version.cuda), ("ROCm", torch.version.hip))
    kind = next((f"{name} {version}" for name, version in kinds if version), "CPU")
    return f"{torch.__version__} ({kind} build)"


def _no_gpu(torch: Any) -> Finding:
    if shutil.which("nvidia-smi"):
        if torch.version.cuda is None:
            return check("GPU", "warn", "there is an NVIDIA driver, but torch is a CPU build", CPU_BUILD)
        return check("GPU", "warn", "an NVIDIA driver is there, but torch sees no GPU", "update the driver")
    return check("GPU", "warn", "none: real bases train too slowly here; the pocket base works", "")


def _tried(name: str, probe: Callable[[], str], fix: str) -> Finding:
    """`probe`'s words, or what it raised."""
    try:
        return check(name, "ok", probe())
    except Exception as error:  # noqa: BLE001 - a broken driver may raise anything; that is the finding
        said = " ".join(str(error).split())[:200] or type(error).__name__
        return check(name, "bad", f"failed ({said})", fix)


def _kernel(torch: Any, device: Any) -> str:
    """A matrix product on the device, compared with the same one in fp64 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(SIDE, SIDE, generator=generator, dtype=torch.float64) for _ in range(2))
    product = (left.float().to(device) @ right.float().to(device)).double().cpu()
    error = ((product - left @ right).abs().mean() / SIDE).item()
    if not error < TOLERANCE:
        raise ArithmeticError(f"a matrix product is wrong by {error:.1e}")
    if device.type != "cuda":
        count = torch.get_num_threads()
        return f"computes correctly with {count} thread{'' if count == 1 else 's'}"
    facts = torch.cuda.get_device_properties(device)
    bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: trains in fp16"
    return f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, compute {facts.major}.{facts.minor}, {bf16}"


def _optimizer(torch: Any, device: Any) -> str:
    """One AdamW8bit step from w = 1 with gradient 2w: the first Adam step moves every weight by lr."""
    import bitsandbytes

    weight = torch.nn.Parameter(torch.ones(8192, device=device))  # above 4096, where states are 8-bit
    optimizer = bitsandbytes.optim.AdamW8bit([weight], lr=0.01, weight_decay=0.0)
    (weight * weight).sum().backward()
    optimizer.step()
    moved = (1 - weight.detach()).mean().item()
    if not abs(moved - 0.01) < 0.001:
        raise ArithmeticError(f"a step of 0.01 moved the weights by {moved:.4f}")
    return f"bitsandbytes {bitsandbytes.__version__}, one AdamW8bit step is right"


if __name__ == "__main__":
    json.dump(report(), sys.stdout)
