"""One small recipe section per adapter method and form, and models that carry them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainers.checkpoints import write_tensors
from trainers.families import FAMILIES
from trainers.families.base import BaseFiles, Family
from trainers.methods import Trainables, attach
from trainers.plan import Geometry
from trainers.recipe import AdapterSection

CPU = torch.device("cpu")
GEOMETRY = [Geometry((64, 48), (0, 4), (32, 24)), Geometry((40, 30), (0, 0), (32, 24))]
TEXT = {"train_text_encoder": True}
SECTIONS: dict[str, AdapterSection] = {
    "lora": AdapterSection(rank=4, alpha=2.0, conv_rank=2, conv_alpha=3.0, **TEXT),
    "rslora": AdapterSection(method="rslora", rank=4, alpha=2.0, conv_rank=2, **TEXT),
    "dora": AdapterSection(method="dora", rank=4, alpha=2.0, conv_rank=2, **TEXT),
    "loha": AdapterSection(method="loha", rank=4, alpha=3.0, conv_rank=2, **TEXT),
    "loha tucker": AdapterSection(method="loha", rank=4, conv_rank=3, tucker=True),
    "lokr": AdapterSection(method="lokr", rank=2, alpha=3.0, conv_rank=2, **TEXT),
    "lokr both": AdapterSection(
        method="lokr", rank=1, conv_rank=1, lokr_factor=4, lokr_decompose_both=True, tucker=True
    ),
    "lokr whole": AdapterSection(method="lokr", rank=64, alpha=16.0),
    "oft": AdapterSection(method="oft", oft_block=8, **TEXT),
    "pissa": AdapterSection(method="pissa", rank=4, alpha=2.0, conv_rank=2, **TEXT),
    "pissa fast": AdapterSection(method="pissa", rank=2, pissa_iterations=4),
    "block ranks": AdapterSection(
        rank=4,
        alpha=2.0,
        conv_rank=2,
        block_ranks={r"mid_block\..*": 3, r".*attn1\.to_q": 0, r"text_encoder\..*fc1": 1},
        **TEXT,
    ),
}


def load(family: str, folder: Path, dtype: torch.dtype = torch.float32) -> Family:
    """A fresh model from a saved toy base."""
    return FAMILIES[family].load_class()(BaseFiles(str(folder)), dtype=dtype, device=CPU)


def draw(family: Family, *, autocast: bool = False) -> Tensor:
    """One prediction at fixed noise, timesteps and captions, for any family."""
    x_t = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(4))
    t = times(family)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        cond = family.conditioning(family.tokenize(["a red disc", "x"]))
        return family.predict(x_t, t, cond, GEOMETRY).float()


def times(family: Family) -> Tensor:
    """(2,) one early and one late, in the family's unit."""
    return torch.tensor([0.2, 0.7]) if FAMILIES[family.name].flow else torch.tensor([5, 700])


def train_some(family: Family, trainables: Trainables, steps: int = 3) -> None:
    """A few steps of Adam on a made-up target, without the trainer."""
    optimizer = torch.optim.Adam(trainables.parameters, 1e-2)
    target = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(9))
    x_t = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(8))
    for _ in range(steps):
        cond = family.conditioning(family.tokenize(["a red disc", "x"]))
        loss = (family.predict(x_t, times(family), cond, GEOMETRY).float() - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def save(trainables: Trainables, path: Path) -> Path:
    """The file that a run leaves."""
    values: dict[str, Any] = {key: p.detach() for key, p in trainables.named.items()}
    tensors = {key: value.clone().contiguous() for key, value in trainables.file_tensors(values).items()}
    write_tensors(path, tensors, trainables.metadata())
    return path


def trained(family: str, folder: Path, section: AdapterSection) -> tuple[Family, Trainables]:
    """A model with an adapter that was trained a little."""
    model = load(family, folder)
    trainables = attach(model, section, seed=3)
    train_some(model, trainables)
    return model, trainables
