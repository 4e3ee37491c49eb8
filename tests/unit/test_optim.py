"""Schedules by hand, running mean against a loop in float64, optimizer state that survives being written."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from registry.errors import BadInput
from trainers.checkpoints import Learning, Store, restore
from trainers.ema import Ema, ScheduleFreeMean
from trainers.flat import Flat
from trainers.methods import Trainables
from trainers.optim import OPTIMIZERS, make_optimizer, optimizer_name, schedule_in_force, set_rates
from trainers.recipe import OptimizerSection, ScheduleSection, recipe_fields
from trainers.rundir import RunDir
from trainers.schedules import SHAPES, lr_factor

CPU = torch.device("cpu")


def flats(count: int = 1) -> list[Flat]:
    """`count` groups of two layers."""

    def layer(seed):
        return nn.Parameter(torch.randn(8, 4, generator=torch.Generator().manual_seed(seed)))

    named = ({"a": layer(2 * n), "b": layer(2 * n + 1)} for n in range(count))
    return [Flat(part, role) for part, role in zip(named, ("denoiser", "text"), strict=False)]


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
    assert factor(5, name="rex") == pytest.approx(0.5 / 0.75)
    decay = [factor(step, name="warmup_stable_decay", decay=0.4) for step in (5, 6, 8, 10)]
    assert decay == pytest.approx([1, 1, 0.5, 0])


@given(
    name=st.sampled_from(sorted(SHAPES)),
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
    optimizer = make_optimizer(OptimizerSection(lr=1e-3, text_lr=2e-4), flats(2), CPU)
    set_rates(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [5e-4, 1e-4]
    set_rates(optimizer, 1.0)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 2e-4]


def test_auto_is_8_bit_on_a_gpu_only():
    assert optimizer_name(OptimizerSection(), CPU) == "adamw"
    assert optimizer_name(OptimizerSection(), torch.device("cuda")) == "adamw8bit"
    assert optimizer_name(OptimizerSection(name="prodigy"), torch.device("cuda")) == "prodigy"


def choices(field: str) -> set[str]:
    return set(recipe_fields()[field].choices)


def test_every_choice_of_the_recipe_has_its_row():
    assert choices("optimizer.name") == {"auto", *OPTIMIZERS}
    assert choices("schedule.name") == set(SHAPES)
    assert {kind.smaller for kind in OPTIMIZERS.values()} - {""} <= set(OPTIMIZERS)


def make(name: str, groups: list[Flat], **options):
    lr = 1.0 if name == "prodigy" else 0.05
    return make_optimizer(OptimizerSection(name=name, lr=lr, **options), groups, CPU)


def step(optimizer, groups: list[Flat]) -> None:
    optimizer.zero_grad(set_to_none=False)
    sum((layer.float() - 1).square().sum() for flat in groups for layer in flat.named.values()).backward()
    optimizer.step()


def distance(groups: list[Flat]) -> float:
    return sum(float((flat.parameter.detach().float() - 1).square().sum()) for flat in groups)


@pytest.mark.filterwarnings("ignore:Paged optimizers")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_downhill(name):
    groups = flats()
    optimizer, before = make(name, groups), distance(groups)
    for _ in range(200):
        step(optimizer, groups)
    assert distance(groups) < before * 0.9


def large_flats(dtype=torch.float32) -> list[Flat]:
    """Two groups, large enough for 8-bit state (4096 values)."""

    def layer(seed, *shape):
        values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return nn.Parameter(values.to(dtype))

    return [Flat({"a": layer(1, 64, 80), "b": layer(2, 8, 64)}), Flat({"c": layer(3, 70, 70)})]


BF16 = [name for name, kind in OPTIMIZERS.items() if not kind.one_rate and not kind.own_mean]


@pytest.mark.filterwarnings("ignore:Paged optimizers")
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float32) for name in OPTIMIZERS), *((name, torch.bfloat16) for name in BF16)],
)
def test_every_optimizer_is_saved_and_restored_bit_for_bit(name, dtype, tmp_path):
    """Through a checkpoint's files, in the middle of a run."""

    def learning():
        groups = large_flats(dtype)
        optimizer = make(name, groups)
        parameters = [flat.parameter for flat in groups]
        own = OPTIMIZERS[name].own_mean
        ema = ScheduleFreeMean(parameters, optimizer) if own else Ema(parameters, 0.9, every=2)
        named = {key: layer for flat in groups for key, layer in flat.named.items()}
        return Learning(Trainables(named, {}, {}, {}), groups, optimizer, ema)

    def run(part, first, last):
        for number in range(first, last + 1):
            set_rates(part.optimizer, 1 / number)
            step(part.optimizer, part.flats)
            part.ema.update()

    whole, broken, resumed = learning(), learning(), learning()
    run(whole, 1, 7)
    run(broken, 1, 3)
    folder = Store(RunDir(tmp_path), b"", 2).save(3, broken, {}, {}, None)
    restore(folder, resumed)
    run(resumed, 4, 7)
    for left, right in zip(whole.parameters, resumed.parameters, strict=True):
        assert torch.equal(left, right)
    for left, right in zip(whole.ema.values(), resumed.ema.values(), strict=True):
        assert torch.equal(left, right)


def test_adafactor_keeps_rows_and_columns():
    groups = large_flats()
    optimizer = make("adafactor", groups)
    step(optimizer, groups)
    kept = sum(t.numel() for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor))
    assert kept < sum(flat.parameter.numel() for flat in groups) / 10


def test_lion_by_hand():
    """Chen et al. 2023, alg. 2: the sign of an average, decay decoupled, the average updated afterwards."""
    groups = flats()
    optimizer = make("lion", groups, weight_decay=0.1)
    value, mean = groups[0].parameter.detach().double().clone(), 0.0
    for _ in range(5):
        step(optimizer, groups)
        gradient = 2 * (value - 1)
        value = value * (1 - 0.05 * 0.1) - 0.05 * torch.sign(0.9 * mean + 0.1 * gradient)
        mean = 0.99 * mean + 0.01 * gradient
    torch.testing.assert_close(groups[0].parameter.detach().double(), value, atol=1e-5, rtol=1e-5)


def test_schedule_free_by_hand():
    """Defazio et al. 2024, alg. 1: gradients at y between z and x, x the mean of z; Adam's second moment."""
    groups = flats()
    optimizer = make("schedulefree", groups, weight_decay=0.0)
    mean = ScheduleFreeMean([groups[0].parameter], optimizer)
    x = z = groups[0].parameter.detach().double().clone()
    assert torch.equal(mean.values()[0], groups[0].parameter)
    square = 0.0
    for k in range(1, 6):
        step(optimizer, groups)
        gradient = 2 * (0.1 * z + 0.9 * x - 1)
        square = 0.999 * square + 0.001 * gradient**2
        z = z - 0.05 * gradient / ((square / (1 - 0.999**k)).sqrt() + 1e-8)
        x = x + (z - x) / k
    torch.testing.assert_close(mean.values()[0].double(), x, atol=1e-4, rtol=1e-4)
    weights = groups[0].parameter.detach().clone()
    with mean.applied():
        torch.testing.assert_close(groups[0].parameter.detach().double(), x, atol=1e-4, rtol=1e-4)
    assert torch.equal(groups[0].parameter, weights)  # looking at the mean changes nothing


def test_schedule_free_takes_no_schedule():
    schedule = ScheduleSection(name="cosine", warmup=0.1)
    found = schedule_in_force(OptimizerSection(name="schedulefree"), schedule, CPU)
    assert (found.name, found.warmup) == ("constant", 0.1)
    assert schedule_in_force(OptimizerSection(), schedule, CPU) is schedule


@pytest.mark.parametrize("name", ["prodigy", "schedulefree"])
def test_optimizers_that_need_fp32_say_so(name):
    with pytest.raises(BadInput, match=f"{name} cannot train bf16 weights"):
        make(name, large_flats(torch.bfloat16))


def test_prodigy_has_one_rate():
    with pytest.raises(BadInput, match="one rate for everything"):
        make_optimizer(OptimizerSection(name="prodigy", lr=1.0, text_lr=0.5), flats(2), CPU)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_running_mean_every_third_step(dtype):
    """The decay is per step whatever the distance of updates; the mean is fp32 on the device asked for."""
    parameter = nn.Parameter(torch.zeros(3, dtype=dtype))
    ema = Ema([parameter], 0.9, device=torch.device("cpu"), every=3)
    mean = 0.0
    for n in range(30):
        with torch.no_grad():
            parameter += 1
        ema.update()
        if (n + 1) % 3 == 0:
            decay = min(0.9, (1 + n) / (10 + n)) ** 3
            mean = decay * mean + (1 - decay) * (n + 1)
    assert ema.means[0].dtype == torch.float32
    assert ema.means[0].tolist() == pytest.approx([mean] * 3, rel=1e-5)
    with ema.applied():
        assert parameter.detach().float().tolist() == pytest.approx([mean] * 3, rel=1e-2)
    assert parameter.detach().tolist() == [30] * 3


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
