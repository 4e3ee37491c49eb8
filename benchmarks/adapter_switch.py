"""Switching adapters at SDXL's size: ours against diffusers' hotswap, in one run and on one device.

The UNet has SDXL's true modules. On a GPU its weights are random; on a CPU they take no memory (each is one
number, stretched), for switching never reads them. Both switch between the same files: every linear layer and
convolution of the blocks, rank 16, fp16. Imports torch, numpy, ml_dtypes, safetensors, and for the contender
diffusers, transformers and peft; of our own modules only what switches.

    python -m benchmarks.adapter_switch [--json] [--rounds 20] [--rank 16] [--cpu-time]
    python -m benchmarks.adapter_switch --requests 500 --adapters 20   # memory over many switches

ours_ram_ms: to an adapter that was used before. ours_file_ms: to one that was not, its names known from
another; first_file_ms: the very first. hotswap_ms, hotswap_file_ms: diffusers, from a state dict in memory
and from the file. ratio = hotswap_ms / ours_ram_ms. strength_ms: another weight; step_ms: one step of a
schedule.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from studio.sampling.stack import AdapterStack, AdapterUseInStack

CONFIG = Path(__file__).parents[1] / "studio" / "configs" / "sdxl" / "unet" / "config.json"
FILES = 6
CPU_TIME = "--cpu-time"  # for a machine that has other work


class Base:
    """What the stack asks of a base, without text encoders."""

    name, denoiser_name, text_encoder_names = "sdxl", "unet", ()

    def __init__(self, unet: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        self.denoiser, self.device, self.dtype = unet, device, dtype

    def part(self, _name: str) -> nn.Module:
        """The UNet is all there is."""
        return self.denoiser


def make_unet(device: torch.device, dtype: torch.dtype) -> Any:
    """SDXL's UNet with random weights, or on the CPU with weights that take no memory."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(json.loads(CONFIG.read_text()))
    unet = unet.to(dtype).requires_grad_(False).eval()
    if device.type == "cpu":
        for module in unet.modules():
            for name, value in list(module.named_parameters(recurse=False)):
                hollow = torch.full((1,), 0.01, dtype=dtype).expand(value.shape)
                setattr(module, name, nn.Parameter(hollow, requires_grad=False))
        return unet
    unet = unet.to_empty(device=device)
    torch.manual_seed(0)
    for parameter in unet.parameters():
        parameter.normal_(std=0.02)
    return unet


def write_adapter(unet: nn.Module, path: Path, rank: int, seed: int) -> Path:
    """An adapter of every layer in the blocks, as diffusers names them."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in unet.named_modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d) or ("blocks" not in name and "mid_block" not in name):
            continue
        out, inside = layer.weight.shape[0], layer.weight.shape[1:]
        down, up = (rank, *inside), (out, rank, *[1] * (len(inside) - 1))
        tensors[f"unet.{name}.lora_A.weight"] = torch.randn(down, generator=generator).half() / 64
        tensors[f"unet.{name}.lora_B.weight"] = torch.randn(up, generator=generator).half() / 64
    save_file(tensors, path, {"format": "pt"})
    return path


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Milliseconds until the device is done; with --cpu-time those of this process's CPU."""
    now = time.process_time if CPU_TIME in sys.argv else time.perf_counter
    started = now()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (now() - started) * 1000


def use(path: Path, weight: float = 1.0, **more: Any) -> AdapterUseInStack:
    """One of the files."""
    return AdapterUseInStack(path.stem, path, path.stem, weight, weight, **more)


def ours(unet: Any, files: list[Path], rounds: int, device: torch.device) -> dict[str, float]:
    """Figures of our stack."""
    base: Any = Base(unet, device, next(unet.parameters()).dtype)
    stack = AdapterStack(base, budget=16 * 2**30)
    first = timed(lambda: stack.use([use(files[0])]), device)
    fresh = [timed(lambda f=file: stack.use([use(f)]), device) for file in files[1:]]
    for pair in ((files[0], files[1]), (files[2], files[3])):
        stack.use([use(file) for file in pair])
    ram, two, strength, step = [], [], [], []
    for number in range(rounds):
        file, other = files[number % FILES], files[(number + 1) % FILES]
        ram.append(timed(lambda f=file: stack.use([use(f)]), device))
        strength.append(timed(lambda f=file, n=number: stack.use([use(f, 0.5 + n / 100)]), device))
        stack.use([use(file, schedule=((0.0, 0.0), (1.0, 1.0)))])
        step.append(timed(lambda n=number: stack.at(0.1 + n / 100), device))
        two.append(timed(lambda f=file, o=other: stack.use([use(f, 0.7), use(o, 0.3)]), device))
    figures = {"first_file_ms": first, "ours_file_ms": statistics.median(fresh)}
    named = {"ours_ram_ms": ram, "two_ram_ms": two, "strength_ms": strength, "step_ms": step}
    figures |= {name: statistics.median(values) for name, values in named.items()}
    figures["ours_ram_worst_ms"] = max(ram)
    if device.type == "cuda":
        figures |= forward(unet, stack, files, device)
    stack.clear()
    return figures


@torch.inference_mode()
def forward(unet: Any, stack: AdapterStack, files: list[Path], device: torch.device) -> dict[str, float]:
    """One call of the UNet at 1024 px with guidance: without adapters, with one, with two."""
    dtype = next(unet.parameters()).dtype
    x, text = (
        torch.randn(2, 4, 128, 128, device=device, dtype=dtype),
        torch.randn(2, 77, 2048, device=device, dtype=dtype),
    )
    more = {
        "text_embeds": torch.randn(2, 1280, device=device, dtype=dtype),
        "time_ids": torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]] * 2, device=device, dtype=dtype),
    }
    t = torch.tensor(500, device=device)
    found: dict[str, float] = {}
    for name, uses in (
        ("forward_plain_ms", []), ("forward_one_ms", [use(files[0])]),
        ("forward_two_ms", [use(files[0]), use(files[1])]), ("forward_plain_again_ms", []),
    ):  # fmt: skip
        stack.use(uses)
        for _ in range(3):
            unet(x, t, text, added_cond_kwargs=more)
        torch.cuda.synchronize()
        found[name] = statistics.median(
            timed(lambda: unet(x, t, text, added_cond_kwargs=more), device) for _ in range(10)
        )
    return found


def hotswap(unet: Any, files: list[Path], rounds: int, device: torch.device) -> dict[str, float]:
    """Figures of diffusers' `load_lora_weights(..., hotswap=True)`, which calls these two."""
    from diffusers.loaders.lora_pipeline import StableDiffusionXLLoraLoaderMixin as Loader

    def load(source: Any, *, swap: bool) -> None:
        state, alphas, metadata = Loader.lora_state_dict(
            source, unet_config=unet.config, return_lora_metadata=True
        )
        Loader.load_lora_into_unet(
            state, network_alphas=alphas, unet=unet, adapter_name="a", metadata=metadata, hotswap=swap
        )

    load(str(files[0]), swap=False)
    kept = [load_file(file) for file in files[:2]]
    ram, file_ms = [], []
    for number in range(max(3, rounds // 4)):
        state = dict(kept[number % 2])
        ram.append(timed(lambda s=state: load(s, swap=True), device))
        file_ms.append(timed(lambda n=number: load(str(files[n % FILES]), swap=True), device))
    return {"hotswap_ms": statistics.median(ram), "hotswap_file_ms": statistics.median(file_ms)}


def memory(unet: Any, files: list[Path], requests: int, device: torch.device) -> dict[str, float]:
    """Resident memory while many requests take turns; room is for half of the adapters."""
    import random

    base: Any = Base(unet, device, next(unet.parameters()).dtype)
    stack = AdapterStack(base)
    stack.use([use(files[0])])
    stack = AdapterStack(base, budget=stack.nbytes * len(files) // 2)
    draw = random.Random(0)
    resident: list[int] = []
    for number in range(requests):
        chosen = draw.sample(files, draw.choice((1, 1, 2)))
        stack.use([use(file, draw.uniform(0.2, 1.2)) for file in chosen])
        stack.at(0.5)
        if number % 10 == 9:
            gc.collect()
            resident.append(_resident())
    early, late = resident[len(resident) // 5], statistics.median(resident[-5:])
    return {"requests": requests, "resident_early_mb": early / 2**20, "resident_late_mb": late / 2**20,
            "growth_percent": 100 * (late / early - 1)}  # fmt: skip


def _resident() -> int:
    """Bytes of this process in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument(CPU_TIME, action="store_true")
    parser.add_argument("--requests", type=int, default=0)
    parser.add_argument("--adapters", type=int, default=20)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    count = options.adapters if options.requests else FILES
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        unet = make_unet(device, dtype)
        files = [
            write_adapter(unet, Path(folder) / f"a{n}.safetensors", options.rank, n) for n in range(count)
        ]
        modules = len(load_file(files[0])) // 2
        facts: dict[str, Any] = {
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
            "torch": torch.__version__, "modules": modules, "rank": options.rank,
            "file_mb": round(files[0].stat().st_size / 2**20, 1),
        }  # fmt: skip
        if options.requests:
            figures = memory(unet, files, options.requests, device)
        else:
            figures = ours(unet, files, options.rounds, device)
            figures |= hotswap(unet, files, options.rounds, device)
            figures["ratio"] = figures["hotswap_ms"] / figures["ours_ram_ms"]
            figures["ratio_file"] = figures["hotswap_file_ms"] / figures["ours_file_ms"]
    facts |= {name: round(value, 2) for name, value in figures.items()}
    print(json.dumps(facts) if options.json else "\n".join(f"{k:20} {v}" for k, v in facts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
