"""What operations on adapters of SDXL's size cost: seconds and peak memory of each, in a process of its own.

Two adapters of random factors on all 788 modules of kohya's network for the UNet, in memory; for `bake` and
`extract` a base of that size, which is a hole in the disk but for what is baked.

    python -m benchmarks.operations [--only NAME]... [--rank 16] [--every 8] [--json]

`--every 8` takes each eighth layer, for a first idea of what takes minutes.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from registry.formats.internal import AdapterForm, LoraFactors
from registry.formats.operations.bake import bake
from registry.formats.operations.extract import extract
from registry.formats.operations.merge import Ingredient, MergeSettings, merge
from registry.formats.operations.ranks import RankRule
from registry.formats.operations.resize import resize
from registry.formats.operations.sources import BaseWeights
from registry.formats.operations.strength import make_strength
from registry.formats.operations.xray import changes_of, xray

CONFIG = Path(__file__).parent.parent / "studio" / "configs" / "sdxl" / "unet" / "config.json"
OUTSIDE = ("conv_in", "conv_out", "time_embedding", "add_embedding")  # of kohya's network
WEIGHTS = "diffusion_pytorch_model.safetensors"

Shapes = dict[str, list[int]]


def shapes_of_unet() -> Shapes:
    """Every layer of SDXL's UNet with the shape of its weight; needs torch, so it is asked in a process."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(json.loads(CONFIG.read_text()))
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return {
        path: list(layer.weight.shape) for path, layer in unet.named_modules() if isinstance(layer, kinds)
    }


def adapter(shapes: Shapes, rank: int, seed: int) -> AdapterForm:
    """Random factors on kohya's modules."""
    random = np.random.default_rng(seed)
    modules: dict[str, LoraFactors] = {}
    for path, (rows, *inside) in shapes.items():
        if not path.startswith(OUTSIDE):
            down = random.standard_normal((rank, *inside), np.float32)
            up = random.standard_normal((rows, rank, *[1] * (len(inside) - 1)), np.float32) / np.float32(100)
            modules[f"unet.{path}"] = LoraFactors(down, up, rank / 2)
    return AdapterForm("sdxl", modules)


def write_base(shapes: Shapes, folder: Path) -> Path:
    """A diffusers folder whose UNet is a hole of the right size, fp16."""
    entries: dict[str, Any] = {}
    at = 0
    for path, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        entries[f"{path}.weight"] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries).encode()
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    with (folder / "unet" / WEIGHTS).open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + at)
    return folder


def operations(shapes: Shapes, rank: int, folder: Path) -> dict[str, Callable[[], object]]:
    """Name -> what is measured; the adapters are made before the clock runs."""
    a, b = adapter(shapes, rank, 1), adapter(shapes, rank, 2)
    both = [Ingredient("a", a, make_strength(0.8)), Ingredient("b", b, make_strength(0.5))]

    def merged(method: str, **rule: Any) -> Callable[[], object]:
        return lambda: merge(both, MergeSettings(method, RankRule(**rule)))

    def resized(**rule: Any) -> Callable[[], object]:
        return lambda: resize(a, RankRule(**rule))

    def base() -> BaseWeights:
        return BaseWeights(folder / "base", "sdxl")

    def extracted() -> object:
        return extract(base(), BaseWeights(folder / "tuned", "sdxl"), RankRule(rank))

    return {
        "merge, concat": merged("concat"),
        "merge, SVD to the rank": merged("svd", rank=rank),
        "merge, TIES": merged("ties", rank=rank),
        "merge, DARE": merged("dare", rank=rank),
        "resize to half": resized(rank=rank // 2),
        "resize, sv_ratio 2": resized(sv_ratio=2.0),
        "resize, sv_fro 0.9": resized(sv_fro=0.9),
        "X-ray": lambda: xray(a, changes_of(a)),
        "bake": lambda: bake(base(), both[:1], folder / "tuned", overwrite=True),
        "extract to the rank": extracted,
    }


def measured(name: str, rank: int, folder: Path) -> dict[str, float]:
    """Seconds and memory of one operation, in this process."""
    shapes: Shapes = json.loads((folder / "shapes.json").read_text())
    work = operations(shapes, rank, folder)[name]
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    """Measure one after the other and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child == "shapes":
        print(json.dumps(shapes_of_unet()))
        return
    if options.child:
        print(json.dumps(measured(options.child, options.rank, options.folder)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        shapes: Shapes = json.loads(_child("shapes"))
        shapes = dict(list(shapes.items())[:: options.every])
        (folder / "shapes.json").write_text(json.dumps(shapes))
        write_base(shapes, folder / "base")
        names = options.only or list(operations({}, options.rank, folder))
        found: dict[str, dict[str, float]] = {}
        for each in names:
            found[each] = json.loads(_child(each, "--folder", str(folder), "--rank", str(options.rank)))
            figures = found[each]
            if not options.json:
                cost = f"{figures['seconds']:7.1f} s {figures['cpu_seconds']:7.1f} CPU-s"
                print(f"{each:24} {cost} {figures['peak_mib']:7.0f} MiB", flush=True)
    if options.json:
        print(json.dumps(found))


def _child(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks.operations", "--child", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
