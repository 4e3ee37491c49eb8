"""Checkpointing of a share of the blocks: how much is kept, and that nothing else changes."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from torch import nn

from tests.support.methods import GEOMETRY, load, times
from tests.support.runs import recipe, write_run
from tests.support.trained_here import equal, losses, set_here, train_here
from trainers.checkpointing import Checkpointed, enable_checkpointing
from trainers.fitting import CHECKPOINTED
from trainers.methods import attach

SHARES = (0.0, *CHECKPOINTED)


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    set_here(monkeypatch)


class Block(nn.Sequential):
    """Two layers; counts how often it runs."""

    def __init__(self, calls: Counter, name: int):
        super().__init__(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16), nn.Sigmoid())
        self.calls, self.name = calls, name

    def forward(self, input):
        self.calls[self.name] += 1
        return super().forward(input)


def kept_by(call):
    """Bytes of different tensors that autograd keeps of a call, and what it gives."""
    kept: dict[int, int] = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = call()
    return sum(kept.values()), result


@pytest.mark.parametrize("count", [1, 3, 8, 70])
@pytest.mark.parametrize("share", CHECKPOINTED)
def test_so_many_blocks_run_twice_and_no_other(share, count):
    torch.manual_seed(0)
    calls = Counter()
    blocks, function = [Block(calls, place) for place in range(count)], Checkpointed(share)
    x = torch.randn(4, 16, requires_grad=True)
    for _ in range(2):
        y = x
        for block in blocks:
            y = y + function(block, y)
        y.sum().backward()
    twice = [place for place, times in calls.items() if times == 4]
    assert all(calls[place] in (2, 4) for place in range(count))
    assert share * count <= len(twice) < share * count + 1
    assert twice[0] == 0
    gaps = [after - before for before, after in pairwise(twice)]
    assert not gaps or max(gaps) - min(gaps) <= 1  # spread evenly


def model(family, folder, share):
    """A toy with an adapter that has learned something."""
    made = load(family, folder)
    trainables = attach(made, recipe({"adapter.rank": 2}, family).adapter, seed=0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in trainables.parameters:
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    if share:
        enable_checkpointing(made, trainables, share)
    return made, trainables


def one_pass(made, trainables):
    """Bytes kept, prediction, gradients."""
    with torch.no_grad():
        cond = made.conditioning(made.tokenize(["a red disc", "x"]))
    channels = made.config("vae")["latent_channels"]
    x_t = torch.randn(2, channels, 8, 6, generator=torch.Generator().manual_seed(4))
    size, prediction = kept_by(lambda: made.predict(x_t, times(made), cond, GEOMETRY))
    prediction.square().mean().backward()
    return size, prediction.detach(), [parameter.grad for parameter in trainables.parameters]


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd35", "flux1"])
def test_less_is_kept_with_every_block_and_no_number_changes(family, request):
    folder, sizes = request.getfixturevalue(f"tiny_{family}"), []
    for share in SHARES:
        size, prediction, gradients = one_pass(*model(family, folder, share))
        if not share:
            expected = prediction, gradients
        assert torch.equal(prediction, expected[0])
        assert all(torch.equal(*pair) for pair in zip(gradients, expected[1], strict=True))
        sizes.append(size)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.6 * sizes[0]
    assert sizes[-1] < sizes[2] < sizes[0]


def test_a_run_with_half_of_the_blocks_is_the_plain_run(tmp_path, pictures, tiny_sd15):
    changes = {"train.max_steps": 3, "adapter.train_text_encoder": True, "optimizer.lr": 1e-3}
    runs = [write_run(tmp_path / "plain", tiny_sd15, pictures, changes)]
    for name, share in (("half", 0.5), ("all", 1.0)):
        more = {"train.gradient_checkpointing": True, "train.checkpointed_blocks": share}
        runs.append(write_run(tmp_path / name, tiny_sd15, pictures, changes | more))
    for rundir in runs:
        assert train_here(rundir).status.warnings == []
        assert losses(rundir) == losses(runs[0])
        assert equal(rundir, runs[0])


def test_dropout_draws_the_same_on_the_way_back(tmp_path, pictures, tiny_sd15):
    changes = {"train.max_steps": 3, "adapter.dropout": 0.3, "optimizer.lr": 1e-3}
    more = {"train.gradient_checkpointing": True, "train.checkpointed_blocks": 0.5}
    plain = write_run(tmp_path / "plain", tiny_sd15, pictures, changes)
    half = write_run(tmp_path / "half", tiny_sd15, pictures, changes | more)
    train_here(plain)
    train_here(half)
    assert losses(half) == losses(plain)
    assert equal(half, plain)
