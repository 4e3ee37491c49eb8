"""A base that rests in the main memory: the same numbers, a tenth of it there, each block copied in time."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.support.runs import write_run
from tests.support.trained_here import equal, losses, set_here, train_here
from trainers.stored import StoredLayer
from trainers.streaming import Stream, stream_part

CPU = torch.device("cpu")
BLOCKS, SIDE = 12, 16
LAYER = 4 * SIDE * SIDE  # bytes


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    set_here(monkeypatch)


class Tower(nn.Module):
    """Blocks of two layers."""

    def __init__(self, *, checkpointed: bool):
        super().__init__()
        self.checkpointed = checkpointed
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(SIDE, SIDE), nn.GELU(), nn.Linear(SIDE, SIDE)) for _ in range(BLOCKS)
        )

    def forward(self, x):
        for block in self.blocks:
            x = x + (checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x))
        return x


def towers(*, checkpointed: bool) -> tuple[nn.Module, nn.Module, Stream]:
    """A plain one and the same streamed, with room for two blocks."""
    torch.manual_seed(0)
    plain, streamed = Tower(checkpointed=checkpointed), Tower(checkpointed=checkpointed)
    streamed.load_state_dict(plain.state_dict())
    for tower in (plain, streamed):
        tower.requires_grad_(False)
    stream = stream_part(streamed, CPU)
    stream.room = 4 * LAYER
    return plain, streamed, stream


def step(tower: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.ones(3, SIDE, requires_grad=True)
    y = tower(x)
    y.square().sum().backward()
    return y.detach(), x.grad


@pytest.mark.parametrize("checkpointed", [False, True])
def test_numbers_are_the_same_and_little_is_there(checkpointed):
    plain, streamed, stream = towers(checkpointed=checkpointed)
    for _ in range(3):
        for left, right in zip(step(plain), step(streamed), strict=True):
            assert torch.equal(left, right)
    layers = [layer for layer in streamed.modules() if isinstance(layer, StoredLayer)]
    assert sum(layer.nbytes for layer in layers) == 2 * BLOCKS * LAYER
    assert 0 < stream.most <= 4 * LAYER
    assert not any("weight" in name for name, _ in streamed.named_parameters())


def test_a_copy_serves_the_second_pass_and_the_way_back():
    _, streamed, stream = towers(checkpointed=True)
    step(streamed)
    before = stream.copied
    step(streamed)
    assert stream.copied - before <= 2 * 2 * BLOCKS * LAYER  # there, and back


def test_the_next_layers_are_there_before_they_are_asked():
    _, streamed, stream = towers(checkpointed=False)
    step(streamed)
    late, asked = [], stream.fetch

    def fetch(layer):
        late.append(layer not in stream._here)
        return asked(layer)

    for layer in streamed.modules():
        if isinstance(layer, StoredLayer):
            layer._fetch = fetch
    step(streamed)
    assert len(late) == 4 * BLOCKS
    assert sum(late) <= 2  # only where a way begins


def test_a_pass_without_gradients_in_between_spoils_nothing():
    plain, streamed, stream = towers(checkpointed=True)
    step(streamed)
    with torch.no_grad():
        streamed(torch.ones(3, SIDE))
    assert all(torch.equal(*pair) for pair in zip(step(plain), step(streamed), strict=True))
    assert stream.most <= stream.room


def test_room_for_the_largest_layer_is_taken_all_the_same():
    _, streamed, stream = towers(checkpointed=False)
    stream.room = 1
    step(streamed)
    assert stream.most == LAYER


@pytest.mark.parametrize(("family", "kept"), [("sd15", "whole"), ("flux1", "int8")])
def test_a_streamed_run_is_the_same_run(family, kept, request, tmp_path, pictures):
    base = request.getfixturevalue(f"tiny_{family}")
    # Adapter dropout keeps the plain run on the CPU from computing weight first, which rounds otherwise.
    changes = {"train.max_steps": 2, "adapter.dropout": 0.1, "train.base_weights": kept, "preview.every": 2}
    runs = []
    for streaming in ("off", "on"):
        more = changes | {"train.base_streaming": streaming, "train.gradient_checkpointing": True}
        runs.append(write_run(tmp_path / streaming, base, pictures, more, family=family))
        train_here(runs[-1])
    assert losses(runs[0]) == losses(runs[1])
    assert equal(*runs)
