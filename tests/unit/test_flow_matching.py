"""Flow matching against closed forms, diffusers' own functions, and properties."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.errors import BadInput
from trainers.flow_matching import FlowMatching, Shift, flow_matching, make_shift
from trainers.recipe import ObjectiveSection

SHAPE = torch.Size((40_000, 4, 8, 8))
DEV = {"use_dynamic_shifting": True, "shift": 3.0, "base_shift": 0.5, "max_shift": 1.15,
       "base_image_seq_len": 256, "max_image_seq_len": 4096}  # fmt: skip
OFF = Shift()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(objective: FlowMatching, shape: torch.Size = SHAPE) -> torch.Tensor:
    return objective.sample_t(shape, generator()).sort().values


def phi(z: float) -> float:
    """Distribution function of the standard normal."""
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def logit(t: float) -> float:
    return math.log(t / (1 - t))


def test_the_line_and_its_derivative():
    objective = FlowMatching()
    x0, noise = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 6)
    t = torch.tensor([0.0, 0.25, 1.0])
    x_t = objective.corrupt(x0, noise, t)
    assert torch.equal(x_t[0], x0[0])
    assert torch.equal(x_t[2], noise[2])
    torch.testing.assert_close(x_t[1], 0.75 * x0[1] + 0.25 * noise[1])
    torch.testing.assert_close(x_t - t.view(-1, 1, 1, 1) * objective.target(x0, noise, t), x0)


def test_noising_equals_diffusers():
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(10)
    x0, noise = torch.randn(2, 4, 5, 6), torch.randn(2, 4, 5, 6)
    expected = scheduler.scale_noise(x0, scheduler.timesteps[[2, 7]], noise)
    torch.testing.assert_close(FlowMatching().corrupt(x0, noise, scheduler.sigmas[[2, 7]]), expected)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 0.6), (1.0, 1.5)])
def test_logit_normal_has_its_distribution(mean: float, std: float):
    """P(t <= x) = phi((logit x - mean) / std); the median is sigmoid(mean)."""
    t = drawn(FlowMatching(mean=mean, std=std))
    assert t.median().item() == pytest.approx(1 / (1 + math.exp(-mean)), abs=0.01)
    for x in (0.1, 0.3, 0.5, 0.8, 0.95):
        assert (t <= x).float().mean().item() == pytest.approx(phi((logit(x) - mean) / std), abs=0.01)


def test_sigmoid_is_the_logit_normal_around_the_middle():
    for scale in (0.5, 1.0, 2.0):
        plain = drawn(FlowMatching(law="sigmoid", sigmoid_scale=scale))
        assert torch.equal(plain, drawn(FlowMatching(mean=0.0, std=scale)))


def test_uniform_and_mode_have_their_moments():
    uniform = drawn(FlowMatching(law="uniform"))
    assert uniform.mean().item() == pytest.approx(1 / 2, abs=0.01)
    assert uniform.var().item() == pytest.approx(1 / 12, abs=0.005)
    for scale in (-0.5, 0.8, 1.29):
        t = drawn(FlowMatching(law="mode", mode_scale=scale))
        # the mean of cos^2(pi u / 2) - 1 + u over u is 1/2 - 1 + 1/2 = 0, so that of the law stays 1/2
        assert t.mean().item() == pytest.approx(1 / 2, abs=0.01)
        assert 0 <= t.min() <= t.max() <= 1
    middle = [
        ((drawn(FlowMatching(law="mode", mode_scale=s)) - 0.5).abs() < 0.1).float().mean()
        for s in (-0.5, 1.29)
    ]
    assert middle[0] < 0.2 < middle[1]


def test_laws_equal_diffusers_where_it_has_them():
    """The same uniform numbers for mode; the same quartiles for logit-normal."""
    expected = compute_density_for_timestep_sampling("mode", 1000, mode_scale=1.29, generator=generator(3))
    found = FlowMatching(law="mode").quantile(torch.rand(1000, generator=generator(3)))
    torch.testing.assert_close(found, expected)
    theirs = compute_density_for_timestep_sampling(
        "logit_normal", 40_000, logit_mean=0.4, logit_std=0.7, generator=generator()
    )
    quartiles = torch.tensor([0.25, 0.5, 0.75])
    ours = drawn(FlowMatching(mean=0.4, std=0.7))
    torch.testing.assert_close(ours.quantile(quartiles), theirs.quantile(quartiles), atol=0.01, rtol=0)


@pytest.mark.parametrize("weighting", ["off", "sigma_sqrt", "cosmap"])
def test_weights_equal_diffusers(weighting):
    t = torch.tensor([0.01, 0.2, 0.5, 1.0])
    expected = compute_loss_weighting_for_sd3(weighting.replace("off", "none"), t)
    torch.testing.assert_close(FlowMatching(weighting=weighting).weight(t), expected)
    assert FlowMatching(weighting=weighting).weight(torch.zeros(1)).isfinite().all()


@settings(max_examples=50, deadline=None)
@given(factor=st.floats(0.1, 20), t=st.floats(0.001, 0.999))
def test_shift_is_a_group_and_keeps_the_ends(factor: float, t: float):
    """Odds are multiplied: t' / (1 - t') = f t / (1 - t); so 1/f undoes f."""
    time = torch.tensor([t], dtype=torch.float64)
    shifted = Shift(factor).apply(time, 16)
    assert (shifted / (1 - shifted)).item() == pytest.approx(factor * t / (1 - t), rel=1e-6)
    assert Shift(1 / factor).apply(shifted, 16).item() == pytest.approx(t, rel=1e-6)
    ends = torch.tensor([0.0, 1.0])
    torch.testing.assert_close(Shift(factor).apply(ends, 16), ends)
    assert OFF.apply(time, 16).item() == pytest.approx(t, rel=1e-12)


def test_static_shift_is_the_schedulers():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    sigmas = torch.arange(1, 1001) / 1000
    torch.testing.assert_close(make_shift({"shift": 3.0}).apply(sigmas, 1), scheduler.sigmas.flip(0))


@pytest.mark.parametrize("side", [256, 512, 768, 1024, 1536])
def test_dynamic_shift_is_the_pipelines(side: int):
    tokens = (side // 16) ** 2
    shift = make_shift(DEV)
    mu = calculate_shift(tokens, 256, 4096, 0.5, 1.15)
    assert shift.mu(tokens) == pytest.approx(mu)
    sigmas = torch.linspace(1, 0.01, 50)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(DEV)
    torch.testing.assert_close(shift.apply(sigmas, tokens), scheduler.time_shift(mu, 1.0, sigmas))
    linear = DEV | {"time_shift_type": "linear"}
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(linear)
    torch.testing.assert_close(
        make_shift(linear).apply(sigmas, tokens), scheduler.time_shift(mu, 1.0, sigmas)
    )


def test_large_pictures_are_noised_more_where_the_shift_is_dynamic():
    objective = FlowMatching(shift=make_shift(DEV))
    small, large = (objective.sample_t(torch.Size((999, 16, s, s)), generator()) for s in (32, 128))
    assert (large > small).all()


def test_the_recipe_and_the_base_choose_the_shift():
    assert make_shift(DEV).factor_of(256) == pytest.approx(math.exp(0.5))
    assert make_shift(DEV).factor_of(4096) == pytest.approx(math.exp(1.15))
    assert make_shift({"shift": 1.0, "use_dynamic_shifting": False}) == OFF  # FLUX.1-schnell
    assert make_shift({"shift": 3.0}).factor_of(77) == 3.0  # SD3
    assert make_shift({"shift": 3.0}, "off") == OFF
    assert make_shift({"shift": 3.0}, "dynamic").mu(4096) == pytest.approx(1.15)
    assert make_shift(DEV, "static").factor == 3.0
    assert make_shift(DEV, "auto", 2.0) == make_shift(DEV, "static", 2.0) == Shift(2.0)


@settings(max_examples=40, deadline=None)
@given(
    low=st.integers(0, 999), width=st.integers(1, 1000), seed=st.integers(0, 2**32 - 1),
    law=st.sampled_from(["uniform", "logit_normal", "sigmoid", "mode"]),
)  # fmt: skip
def test_times_stay_in_their_bounds(low: int, width: int, seed: int, law):
    section = ObjectiveSection(timestep_law=law, timestep_min=low, timestep_max=min(1000, low + width))
    objective = flow_matching({"shift": 3.0}, section, patch=2)
    shape = torch.Size((256, 4, 8, 8))
    t = objective.sample_t(shape, generator(seed))
    low_bound, high_bound = objective.bounds
    assert low_bound - 1e-6 <= float(t.min()) <= float(t.max()) <= high_bound + 1e-6
    assert (t.dtype, t.shape) == (torch.float32, (256,))
    assert torch.equal(t, objective.sample_t(shape, generator(seed)))
    probe = objective.probe_t(torch.Size((8, 4, 8, 8)))
    assert low_bound - 1e-6 <= float(probe.min()) <= float(probe.max()) <= high_bound + 1e-6


def test_the_probe_is_spread_as_training_is():
    objective = FlowMatching(shift=Shift(3.0))
    probe, t = objective.probe_t(torch.Size((99, 4, 8, 8))), drawn(objective)
    torch.testing.assert_close(probe, t.quantile((torch.arange(99) + 0.5) / 99), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"snr_gamma": 5.0}, "objective.snr_gamma: means nothing to a base"),
        ({"timestep_law": "uniform", "logit_mean": 1.0}, "where objective.timestep_law is uniform"),
        ({"mode_scale": 1.0}, "where objective.timestep_law is logit_normal"),
        ({"shift": "off", "shift_factor": 2.0}, "where objective.shift is off"),
        ({"shift": "dynamic", "shift_factor": 2.0}, "where objective.shift is dynamic"),
    ],
)
def test_choices_without_meaning_are_refused_in_one_line(fields, said):
    with pytest.raises(BadInput) as error:
        flow_matching({"shift": 3.0}, ObjectiveSection.model_validate(fields), patch=2)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
