"""How many operations a step of the published sizes starts, with PEFT's layers and packed; and what it keeps.

Only shapes are computed (fake tensors in bf16 under the CPU's autocast, norms in fp32 as on a GPU): it runs
anywhere in a minute and without weights. Of the denoiser alone: forward and backward of one picture at the
family's resolution, an adapter of the shipped style recipe. Views are not counted: they start nothing.

    python -m benchmarks.step_operations [--cases sd15 sdxl sd35:medium flux1:dev] [--kept]
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
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.true_size import CASES, base_folder, make
from trainers.checkpointing import Checkpointed
from trainers.families import FAMILIES
from trainers.families.base import BaseFiles, Family
from trainers.fitting import CHECKPOINTED
from trainers.groups import make_flats
from trainers.methods import attach
from trainers.packed import pack
from trainers.plan import Geometry
from trainers.recipe import Recipe, preset

CPU, DTYPE = torch.device("cpu"), torch.bfloat16


def norms_as_on_a_gpu() -> None:
    """Autocast has norms give fp32 on a GPU, and leaves them alone on the CPU."""
    functions: Any = F
    for name in ("layer_norm", "group_norm"):
        plain = getattr(functions, name)
        setattr(
            functions,
            name,
            lambda x, *args, plain=plain, **more: plain(x.float(), *_float(args), **_float(more)),
        )


def _float(values: Any) -> Any:
    if isinstance(values, dict):
        return dict(zip(values, _float(tuple(values.values())), strict=True))
    return tuple(v.float() if isinstance(v, torch.Tensor) else v for v in values)


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


class Step:
    """Forward and backward of a published size, in shapes alone.

    Args:
        case: A family, with a variant behind a colon.
        folder: Empty; for configs.
        packed: Whether the adapter computes in 16 bits.
        checkpoint: What blocks are called through, for gradient checkpointing.
    """

    def __init__(self, case: str, folder: Path, *, packed: bool, checkpoint: Any = None) -> None:
        name, _, variant = case.partition(":")
        place, side = base_folder_of(name, variant, folder), FAMILIES[name].resolution
        cls = shapes_only(FAMILIES[name].load_class(), place)
        self.family = cls(BaseFiles(str(place)), dtype=DTYPE, device=CPU)
        self.flats = adapted(self.family, preset(name, "style"), packed=packed)
        if checkpoint:
            self.denoiser.enable_gradient_checkpointing(checkpoint)
        self.x_t = torch.randn(1, FAMILIES[name].latent_channels, side // 8, side // 8)
        self.geometry = [Geometry((side, side), (0, 0), (side, side))]
        self.cond = conditioning(self.family)

    @property
    def denoiser(self) -> Any:
        """With the adapter."""
        return self.family.denoiser

    def forward(self) -> torch.Tensor:
        """The loss."""
        with torch.autocast("cpu", DTYPE):
            prediction = self.family.predict(self.x_t, torch.full((1,), 0.5), self.cond, self.geometry)
        return prediction.float().square().mean()


def operations(case: str, *, packed: bool) -> Counter[str]:
    """Of one step by name."""
    with tempfile.TemporaryDirectory() as folder, FakeTensorMode():
        step = Step(case, Path(folder), packed=packed)
        with Counting() as counted:
            step.forward().backward()
            for flat in step.flats:
                flat.gather()
                flat.refresh()
    return counted.seen


def kept(case: str, share: float) -> float:
    """GiB of activations that wait for the way back when a share of the blocks is checkpointed."""
    storages: dict[int, Any] = {}

    def keep(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            storages[storage._cdata] = storage
        return value

    class Seen(Checkpointed):
        def __call__(self, block: Any, *args: Any) -> Any:
            for value in args:  # held by the block's second call, out of sight of hooks
                keep(value)
            return super().__call__(block, *args)

    with tempfile.TemporaryDirectory() as folder, FakeTensorMode():
        step = Step(case, Path(folder), packed=True, checkpoint=Seen(share) if share else None)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            step.forward()
        weights = (*step.denoiser.parameters(), *step.denoiser.buffers())
        own = {value.untyped_storage()._cdata for value in weights}
        return sum(s.nbytes() for key, s in storages.items() if key not in own) / 2**30


def base_folder_of(name: str, variant: str, folder: Path) -> Path:
    """See `true_size.base_folder`; its toys are real tensors."""
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        return base_folder(name, variant, folder)


def main() -> int:
    """Print one line of JSON a case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    parser.add_argument("--kinds", type=int, default=6, help="how many kinds of operations to name")
    parser.add_argument(
        "--kept", action="store_true", help="GiB of activations by share of the blocks instead"
    )
    options = parser.parse_args()
    norms_as_on_a_gpu()
    for case in options.cases:
        if options.kept:
            gib = {f"{share:g}": round(kept(case, share), 2) for share in (0.0, *CHECKPOINTED)}
            print(json.dumps({"case": case, "gib": gib}), flush=True)
            continue
        before, after = (operations(case, packed=packed) for packed in (False, True))
        counts = {"case": case, "peft": before.total(), "packed": after.total()}
        kinds = {kind: [count, after[kind]] for kind, count in before.most_common(options.kinds)}
        print(json.dumps(counts | {"kinds": kinds}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
