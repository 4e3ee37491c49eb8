"""Stochastic rounding: exact where bf16 is, unbiased elsewhere, reproducible, and no update is lost."""

import pytest
import torch
from torch import nn

from trainers.flat import Flat
from trainers.optim import make_optimizer
from trainers.recipe import OptimizerSection
from trainers.rounding import Rounded, add_stochastic_, pieces_of, set_stochastic_

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_rounding_goes_to_a_neighbour_and_is_unbiased():
    """The chance of the upper neighbour is the share of the way there: mean and deviation of a coin."""
    count = 40_000
    for value in (1.001, -1.001, 3.14159, -2.7e-5, 6.1e4):
        source = torch.full((count,), value)
        found = set_stochastic_(torch.empty(count, dtype=torch.bfloat16), source, generator()).double()
        exact = source[0].double()
        low, high = found.min(), found.max()
        assert len(found.unique()) == 2
        assert low < exact < high
        gap = high - low
        assert gap <= abs(exact) / 127  # neighbours of 8 bits
        share = (exact - low) / gap
        deviation = gap * (share * (1 - share) / count).sqrt()
        assert abs(found.mean() - exact) < 4 * deviation


def test_what_bf16_holds_stays():
    exact = torch.randn(1000, generator=generator()).bfloat16()
    special = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan")]).bfloat16()
    for values in (exact, special):
        found = set_stochastic_(torch.empty_like(values), values.float(), generator(1))
        assert torch.equal(found.view(torch.int16), values.view(torch.int16))


def test_small_updates_arrive_on_average():
    """A thousand updates of 1/1000 of what bf16 tells apart: nearest rounding stays where it is."""
    weight = torch.ones(2000, dtype=torch.bfloat16)
    nearest, update = weight.clone(), torch.full((2000,), 2**-8 / 1000)
    draws = generator(2)
    for _ in range(1000):
        add_stochastic_(weight, update, draws)
        nearest += update.bfloat16()
    assert torch.equal(nearest, torch.ones_like(nearest))
    assert weight.float().mean().item() - 1 == pytest.approx(2**-8, rel=0.1)


def flat(count: int = 1000) -> Flat:
    values = torch.randn(count, generator=generator(3)).bfloat16()
    return Flat({"a": nn.Parameter(values[:600].clone()), "b": nn.Parameter(values[600:].clone())})


def optimizer_in_pieces(group: Flat, size: int) -> Rounded:
    return Rounded(
        [pieces_of(group, layers=False, size=size)],
        [{"lr": 1e-3}],
        lambda groups: torch.optim.AdamW(groups, fused=True),
        seed=7,
    )


def test_pieces_learn_what_the_whole_learns():
    """AdamW in fp32 on a copy is the mean that pieces of bf16 follow, in any number of pieces."""
    moved: list[torch.Tensor] = []
    for size in (1000, 128):
        group = flat()
        optimizer = optimizer_in_pieces(group, size)
        exact = nn.Parameter(group.parameter.detach().float())
        expected = torch.optim.AdamW([exact], lr=1e-3)
        for _ in range(20):
            group.parameter.grad.fill_(1.0)  # the sign is all that counts: both see the same gradient
            exact.grad = torch.ones_like(exact)
            optimizer.step()
            expected.step()
            optimizer.zero_grad()
        assert not group.parameter.grad.any()
        moved.append(group.parameter.detach().float())
        assert float((moved[-1] - exact).mean()) == pytest.approx(0, abs=1e-3)
        assert all(p.numel() == 0 for p in optimizer.param_groups[0]["params"])  # no fp32 copy stays
    assert not torch.equal(moved[0], moved[1])  # other places, other draws


def test_a_frozen_group_is_passed_over():
    groups = [flat(), flat()]
    optimizer = make_optimizer(OptimizerSection(name="adamw", lr=0.1), groups, CPU, seed=1)
    assert isinstance(optimizer, Rounded)
    before = groups[1].parameter.detach().clone()
    groups[1].freeze()
    groups[0].parameter.grad.fill_(1.0)
    optimizer.step()
    assert torch.equal(groups[1].parameter, before)
    assert not torch.equal(groups[0].parameter, before)
