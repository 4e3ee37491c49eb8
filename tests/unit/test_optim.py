"""Schedules by hand, running mean against a loop in float64, optimizer state that survives being written."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from registry.errors import BadInput
from trainers.ema import Ema
from trainers.flat import Flat
from trainers.optim import lr_factor, make_optimizer, optimizer_name, set_rates
from trainers.recipe import OptimizerSection, ScheduleSection

NAMES = ("constant", "cosine", "linear", "polynomial", "cosine_with_restarts")


def flats(count: int = 1) -> list[Flat]:
    """`count` groups of two layers."""

    def layer(seed):
        return nn.Parameter(torch.randn(8, 4, generator=torch.Generator().manual_seed(seed)))

    return [Flat({"a": layer(2 * n), "b": layer(2 * n + 1)}) for n in range(count)]


def test_cosine_by_hand():
    section = ScheduleSection(name="cosine", warmup=0.1, min_lr=0.2)
    factors = [lr_factor(section, step, 100) for step in (1, 5, 10, 55, 100)]
    expected = [1 / 11, 5 / 11, 10 / 11, 0.2 + 0.8 * (1 + math.cos(math.pi / 2)) / 2, 0.2]
    assert factors == pytest.approx(expected)


def test_other_shapes_by_hand():
    def factor(step, **options):
        return lr_factor(ScheduleSection(warmup=0.0, **options), step, 10)

    assert factor(7, name="constant") == 1
    assert factor(4, name="linear") == pytest.approx(0.6)
    assert factor(4, name="polynomial", power=2.0) == pytest.approx(0.36)
    assert factor(5, name="cosine_with_restarts", cycles=2) == pytest.approx(1.0)
    assert factor(10, name="cosine_with_restarts", cycles=2) == pytest.approx(0.0)


@given(
    name=st.sampled_from(NAMES),
    steps=st.integers(1, 3000),
    at=st.floats(0, 1),
    warmup=st.floats(0, 0.99),
    min_lr=st.floats(0, 1),
    cycles=st.integers(1, 20),
)
def test_factor_stays_in_its_range(name, steps, at, warmup, min_lr, cycles):
    section = ScheduleSection(name=name, warmup=warmup, min_lr=min_lr, cycles=cycles)
    step = 1 + round(at * (steps - 1))
    assert 0 <= lr_factor(section, step, steps) <= 1
    if name != "constant" and round(warmup * steps) < steps:
        assert lr_factor(section, steps, steps) == pytest.approx(min_lr)


def test_rates_of_both_groups_keep_their_ratio():
    optimizer = make_optimizer(OptimizerSection(lr=1e-3, text_lr=2e-4), flats(2), torch.device("cpu"))
    set_rates(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [5e-4, 1e-4]
    set_rates(optimizer, 1.0)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 2e-4]


def test_auto_is_8_bit_on_a_gpu_only():
    assert optimizer_name(OptimizerSection(), torch.device("cpu")) == "adamw"
    assert optimizer_name(OptimizerSection(), torch.device("cuda")) == "adamw8bit"
    assert optimizer_name(OptimizerSection(name="prodigy"), torch.device("cuda")) == "prodigy"


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "prodigy"])
def test_every_optimizer_goes_downhill(name):
    groups = flats()
    parameter = groups[0].parameter
    lr = 1.0 if name == "prodigy" else 0.05
    optimizer = make_optimizer(OptimizerSection(name=name, lr=lr), groups, torch.device("cpu"))
    before = float(parameter.detach().square().sum())
    for _ in range(200):
        optimizer.zero_grad(set_to_none=False)
        sum(layer.square().sum() for layer in groups[0].named.values()).backward()
        optimizer.step()
    assert float(parameter.detach().square().sum()) < before * 0.9


def test_prodigy_has_one_rate():
    with pytest.raises(BadInput, match="one rate for everything"):
        make_optimizer(OptimizerSection(name="prodigy", lr=1.0, text_lr=0.5), flats(2), torch.device("cpu"))


def test_running_mean_against_a_loop():
    parameter = nn.Parameter(torch.zeros(3))
    ema = Ema([parameter], 0.9)
    mean = [0.0, 0.0, 0.0]
    generator = torch.Generator().manual_seed(0)
    for n in range(40):
        with torch.no_grad():
            parameter += torch.randn(3, generator=generator)
        ema.update()
        decay = min(0.9, (1 + n) / (10 + n))
        mean = [decay * m + (1 - decay) * v for m, v in zip(mean, parameter.tolist(), strict=True)]
    assert ema.means[0].tolist() == pytest.approx(mean, rel=1e-5)
    weights = parameter.detach().clone()
    with ema.applied():
        assert torch.equal(parameter, ema.means[0])
    assert torch.equal(parameter, weights)


def test_running_mean_switched_off_costs_nothing():
    parameter = nn.Parameter(torch.ones(2))
    ema = Ema([parameter], 0.0)
    ema.update()
    assert ema.means == []
    assert ema.values()[0].data_ptr() == parameter.data_ptr()


def test_flat_storage_learns_as_separate_tensors_do():
    flat = flats()[0]
    separate = [nn.Parameter(p.detach().clone()) for p in flat.named.values()]
    expected = torch.optim.AdamW(separate, lr=0.1)
    found = torch.optim.AdamW([flat.parameter], lr=0.1)
    for step in range(5):
        for layers, optimizer in ((separate, expected), (list(flat.named.values()), found)):
            sum((layer - step).pow(4).sum() for layer in layers).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    for layer, other in zip(flat.named.values(), separate, strict=True):
        torch.testing.assert_close(layer, other)
    kept = flat.parameter.detach().clone()
    flat.freeze()
    found.step()
    assert flat.frozen
    assert torch.equal(flat.parameter, kept)
