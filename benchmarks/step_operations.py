"""How many operations a training step of the published sizes starts: with PEFT's layers, and packed.

Only shapes are computed (fake tensors in bf16 on the CPU under its autocast), so it runs anywhere in a minute
and without weights. Of the denoiser alone: forward and backward of one picture at the family's resolution, an
adapter of the shipped style recipe. Views are not counted: they start nothing.

    python -m benchmarks.step_operations [--cases sd15 sdxl sd35:medium flux1:dev]
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.true_size import CASES, base_folder, make
from trainers.families import FAMILIES
from trainers.families.base import BaseFiles, Family
from trainers.groups import make_flats
from trainers.methods import attach
from trainers.packed import pack
from trainers.plan import Geometry
from trainers.recipe import Recipe, preset

CPU, DTYPE = torch.device("cpu"), torch.bfloat16


class Counting(TorchDispatchMode):
    """Counts what is dispatched, views apart."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func.namespace == "aten" and not func.is_view:
            self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def shapes_only(cls: type[Family], configs: Path) -> type[Family]:
    """`cls`, whose denoiser is made from its config; of fake tensors, where these are in force."""

    class ShapesOnly(cls):
        def _load(self, name: str) -> Any:
            config = json.loads((configs / name / "config.json").read_text())
            torch.set_default_dtype(DTYPE)
            try:
                return make(self.parts[name].load_class(), config, text=False).requires_grad_(False).eval()
            finally:
                torch.set_default_dtype(torch.float32)

    return ShapesOnly


def adapted(family: Family, recipe: Recipe, *, packed: bool) -> list[Any]:
    """Attach the recipe's adapter; its groups."""
    section = recipe.adapter.model_copy(update={"train_text_encoder": False})
    with patch.object(nn.Module, "to", lambda module, *_, **__: module):  # fake tensors cannot move
        trainables = attach(family, section, seed=0)
    flats = make_flats(trainables, recipe.optimizer, family.denoiser_name)
    if packed:
        assert pack(trainables, flats, DTYPE) == len(trainables.named) // 2
    return flats


def conditioning(family: Family) -> dict[str, torch.Tensor]:
    """What the denoiser reads, of one caption."""
    config: Any = family.denoiser.config
    width = config.get("cross_attention_dim") or config.get("joint_attention_dim")
    tokens = 77 if family.denoiser_name == "unet" else 512
    pooled = config.get("pooled_projection_dim") or 1280
    return {
        "hidden": torch.zeros(1, tokens, width, dtype=DTYPE),
        "pooled": torch.zeros(1, pooled, dtype=DTYPE),
    }


def operations(case: str, *, packed: bool) -> Counter[str]:
    """Of one step by name."""
    name, _, variant = case.partition(":")
    recipe, side = preset(name, "style"), FAMILIES[name].resolution
    with tempfile.TemporaryDirectory() as folder, FakeTensorMode():
        place = base_folder_of(name, variant, Path(folder))
        cls = shapes_only(FAMILIES[name].load_class(), place)
        family = cls(BaseFiles(str(place)), dtype=DTYPE, device=CPU)
        flats = adapted(family, recipe, packed=packed)
        channels = FAMILIES[name].latent_channels
        x_t, t = torch.randn(1, channels, side // 8, side // 8), torch.full((1,), 0.5)
        geometry = [Geometry((side, side), (0, 0), (side, side))]
        cond = conditioning(family)
        with Counting() as counted:
            with torch.autocast("cpu", DTYPE):
                prediction = family.predict(x_t, t, cond, geometry).float()
            prediction.square().mean().backward()
            for flat in flats:
                flat.gather()
                flat.refresh()
    return counted.seen


def base_folder_of(name: str, variant: str, folder: Path) -> Path:
    """See `true_size.base_folder`; its toys are real tensors."""
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        return base_folder(name, variant, folder)


def main() -> int:
    """Print one line of JSON a case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    parser.add_argument("--kinds", type=int, default=6, help="how many kinds of operations to name")
    options = parser.parse_args()
    for case in options.cases:
        before, after = (operations(case, packed=packed) for packed in (False, True))
        counts = {"case": case, "peft": before.total(), "packed": after.total()}
        kinds = {kind: [count, after[kind]] for kind, count in before.most_common(options.kinds)}
        print(json.dumps(counts | {"kinds": kinds}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
