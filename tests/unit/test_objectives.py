"""Formulas against diffusers' scheduler, a calculation in float64, and properties."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from registry.errors import BadInput
from trainers.families import FAMILIES
from trainers.families.base import BaseFiles
from trainers.flow_matching import flow_matching
from trainers.noise import NoiseLaw
from trainers.objectives import DDPM, noise_schedule
from trainers.objectives import ddpm as make_ddpm
from trainers.penalties import make_penalty
from trainers.preview import make_sampler
from trainers.recipe import ObjectiveSection, apply_sets, preset

CONFIG = {
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
}  # fmt: skip


def ddpm(config, timesteps=(0, 1000), **options) -> DDPM:
    low, high = timesteps
    section = ObjectiveSection(timestep_min=low, timestep_max=high, **options)
    return make_ddpm(config, section)


def alpha_bar(t: int) -> float:
    """Of the scaled-linear schedule, in float64 and by the definition."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return float(np.prod(1 - betas[: t + 1]))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_noising_and_targets_equal_diffusers():
    scheduler = DDPMScheduler.from_config(CONFIG)
    x0, noise = (
        torch.randn(4, 4, 5, 3, generator=generator()),
        torch.randn(4, 4, 5, 3, generator=generator(1)),
    )
    t = torch.tensor([0, 10, 500, 999])
    eps, v = ddpm(CONFIG), ddpm(CONFIG | {"prediction_type": "v_prediction"})
    assert (eps.prediction, v.prediction) == ("epsilon", "v_prediction")
    torch.testing.assert_close(eps.corrupt(x0, noise, t), scheduler.add_noise(x0, noise, t))
    assert torch.equal(eps.target(x0, noise, t), noise)
    torch.testing.assert_close(v.target(x0, noise, t), scheduler.get_velocity(x0, noise, t))


@pytest.mark.parametrize("t", [0, 1, 137, 500, 998, 999])
def test_min_snr_weight_by_hand(t: int):
    a = alpha_bar(t)
    snr = a / (1 - a)
    steps = torch.tensor([t])
    eps = ddpm(CONFIG, snr_gamma=5.0)
    v = ddpm(CONFIG, snr_gamma=5.0, prediction="v_prediction")
    assert eps.weight(steps).item() == pytest.approx(min(snr, 5.0) / snr, rel=2e-3)
    assert v.weight(steps).item() == pytest.approx(min(snr, 5.0) / (snr + 1), rel=2e-3)
    assert ddpm(CONFIG).weight(steps).item() == 1.0


def test_velocity_rotates_signal_into_noise():
    """x0 = sqrt(a) x_t - sqrt(1 - a) v: the identity that samplers use."""
    objective = ddpm(CONFIG, prediction="v_prediction")
    x0, noise = (
        torch.randn(2, 4, 4, 4, generator=generator()),
        torch.randn(2, 4, 4, 4, generator=generator(2)),
    )
    for step in (3, 600):
        t, a = torch.tensor([step, step]), alpha_bar(step)
        x_t, v = objective.corrupt(x0, noise, t), objective.target(x0, noise, t)
        torch.testing.assert_close(math.sqrt(a) * x_t - math.sqrt(1 - a) * v, x0, atol=1e-4, rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(low=st.integers(0, 999), width=st.integers(1, 1000), seed=st.integers(0, 2**32 - 1))
def test_timesteps_stay_in_their_range(low: int, width: int, seed: int):
    high = min(1000, low + width)
    objective = ddpm(CONFIG, timesteps=(low, high))
    t = objective.sample_t(torch.Size((256, 4, 8, 8)), generator(seed))
    assert low <= int(t.min()) <= int(t.max()) < high
    assert torch.equal(t, objective.sample_t(torch.Size((256, 4, 8, 8)), generator(seed)))
    probe = objective.probe_t(torch.Size((8, 4, 8, 8)))
    assert low <= int(probe.min()) <= int(probe.max()) < high


def test_timesteps_scale_to_a_shorter_schedule():
    assert ddpm(CONFIG | {"num_train_timesteps": 100}, timesteps=(500, 1000)).timesteps == (50, 100)


def test_noise_offset_adds_variance_between_channels_only():
    shape = torch.Size((2000, 4, 2, 2))
    plain = ddpm(CONFIG).sample_noise(shape, generator())
    offset = ddpm(CONFIG, noise_offset=0.5).sample_noise(shape, generator()) - plain
    assert torch.allclose(offset, offset[..., :1, :1].expand(shape), atol=1e-6)
    assert offset[..., 0, 0].std().item() == pytest.approx(0.5, rel=0.05)


def test_zero_terminal_snr():
    """Rescaled betas (Lin et al. 2023): v works with finite weights, epsilon is refused."""
    config = CONFIG | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    objective = ddpm(config, snr_gamma=5.0)
    last = torch.tensor([999])
    assert objective.weight(last).item() == pytest.approx(0.0, abs=1e-6)
    assert torch.isfinite(ddpm(config, snr_gamma=5.0).weight(torch.arange(1000))).all()
    exact = DDPM(torch.tensor([0.9, 0.0]), "epsilon", 5.0, "min_snr", timesteps=(0, 2))
    assert exact.weight(torch.tensor([1])).item() == 1.0


def test_unknown_prediction_is_refused_in_one_line():
    with pytest.raises(BadInput, match=r"predicts 'sample'\. use a base") as error:
        ddpm(CONFIG | {"prediction_type": "sample"})
    assert "\n" not in str(error.value)


def test_epsilon_at_zero_terminal_snr_is_refused():
    with pytest.raises(BadInput, match="ends at zero signal"):
        ddpm(CONFIG | {"rescale_betas_zero_snr": True})


@pytest.mark.parametrize("t", [0, 137, 500, 999])
def test_loss_weights_by_hand(t: int):
    """For v: the weight of the noise's error, expressed by the error of v, |v - v'|^2 = |e - e'|^2 / a."""
    a = alpha_bar(t)
    snr = a / (1 - a)
    expected = {
        "soft_min_snr": 1 / (1 / snr + 1 / 5.0) / snr,  # half the harmonic mean of SNR and gamma, on x0
        "debiased": snr**-0.5,
        "p2": 1 / (1 + snr),
        "epsilon": 1.0,
    }
    for weighting, weight in expected.items():
        gamma = 5.0 if weighting == "soft_min_snr" else None
        options = {"weighting": weighting, "snr_gamma": gamma}
        eps, v = ddpm(CONFIG, **options), ddpm(CONFIG, prediction="v_prediction", **options)
        assert eps.weight(torch.tensor([t])).item() == pytest.approx(weight, rel=2e-3)
        assert v.weight(torch.tensor([t])).item() == pytest.approx(weight * a, rel=2e-3)


def test_weights_exclude_each_other():
    for options in ({"weighting": "debiased", "snr_gamma": 5.0}, {"weighting": "min_snr"}):
        with pytest.raises(ValidationError, match=r"objective\.snr_gamma is (5|none)"):
            ObjectiveSection(**options)
    with pytest.raises(BadInput, match="must be auto, min_snr or soft_min_snr") as error:
        apply_sets(preset("sd15", "style"), ["objective.weighting=debiased"])
    assert "\n" not in str(error.value)
    recipe = apply_sets(preset("sd15", "style"), ["objective.weighting=debiased", "objective.snr_gamma=none"])
    assert recipe.objective.weighting == "debiased"


def test_rescaled_schedule_is_algorithm_1():
    """Lin et al. 2023, alg. 1, in float64: the root of alpha-bar is shifted to end at 0 and scaled to begin
    as it did."""
    objective = ddpm(CONFIG | {"prediction_type": "v_prediction"}, zero_terminal_snr="on")
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    root = np.sqrt(np.cumprod(1 - betas))
    expected = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    np.testing.assert_allclose(objective.alphas_cumprod.numpy(), expected, atol=2e-5)
    assert objective.alphas_cumprod[-1] < 1e-6
    last, noise = torch.tensor([999]), torch.randn(1, 4, 2, 2, generator=generator())
    torch.testing.assert_close(
        objective.corrupt(torch.ones(1, 4, 2, 2), noise, last), noise, atol=1e-3, rtol=0
    )


def test_the_bases_word_on_the_schedule_can_be_overruled():
    rescaled = CONFIG | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    assert ddpm(rescaled).alphas_cumprod[-1] < 1e-6
    assert ddpm(rescaled, zero_terminal_snr="off").alphas_cumprod[-1].item() == pytest.approx(
        alpha_bar(999), rel=1e-3
    )
    with pytest.raises(BadInput, match="zero_terminal_snr: is on, but the base predicts epsilon"):
        ddpm(CONFIG, zero_terminal_snr="on")


SHAPE = torch.Size((6, 4, 16, 12))


def test_what_is_switched_off_draws_nothing():
    objective, draws = ddpm(CONFIG), generator(5)
    noise = objective.sample_noise(SHAPE, draws)
    assert objective.perturb(noise, draws) is noise
    expected = generator(5)
    assert torch.equal(noise, torch.randn(SHAPE, generator=expected))
    assert torch.equal(draws.get_state(), expected.get_state())


def test_input_perturbation_changes_the_input_and_not_the_target():
    """Ning et al. 2023, alg. 1: x_t from noise + gamma xi, the loss against noise."""
    objective, draws = ddpm(CONFIG, input_perturbation=0.1), generator(1)
    noise = objective.sample_noise(SHAPE, draws)
    shown = objective.perturb(noise, draws)
    again = generator(1)
    assert torch.equal(noise, torch.randn(SHAPE, generator=again))
    torch.testing.assert_close(shown, noise + 0.1 * torch.randn(SHAPE, generator=again))
    assert torch.equal(objective.target(torch.zeros(SHAPE), noise, torch.full((6,), 3)), noise)
    variance = objective.perturb(torch.randn(2, 4, 64, 64, generator=draws), draws).var().item()
    assert variance == pytest.approx(1.01, rel=0.03)


def test_offset_of_a_drawn_strength():
    law, draws = NoiseLaw(offset=0.5, offset_varies=True), generator(2)
    noise, again = law.sample(SHAPE, draws), generator(2)
    plain, constant = torch.randn(SHAPE, generator=again), torch.randn(6, 4, 1, 1, generator=again)
    strength = 0.5 * torch.rand(6, 1, 1, 1, generator=again)
    torch.testing.assert_close(noise, plain + strength * constant)


def test_pyramid_noise_by_hand():
    """Whitaker 2023: coarser grids, enlarged bilinearly by an explicit loop, weighted by discount^level."""
    noise, draws = NoiseLaw(pyramid_discount=0.6, pyramid_levels=4).sample(SHAPE, generator(3)), generator(3)
    total = torch.randn(SHAPE, generator=draws).double().numpy()
    for level in range(4):
        ratio = 2 + 2 * torch.rand((), generator=draws).item()
        height, width = max(1, int(16 / ratio**level)), max(1, int(12 / ratio**level))
        coarse = torch.randn(6, 4, height, width, generator=draws).double().numpy()
        total += 0.6**level * bilinear(coarse, 16, 12)
        if 1 in (height, width):
            break
    expected = total / total.reshape(6, -1).std(axis=1, ddof=1)[:, None, None, None]
    np.testing.assert_allclose(noise.numpy(), expected, atol=1e-4)


def bilinear(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Half-pixel centres, edges repeated."""

    def weights(small: int, large: int) -> np.ndarray:
        matrix = np.zeros((large, small))
        for row in range(large):
            place = max(0.0, (row + 0.5) * small / large - 0.5)
            low = min(int(place), small - 1)
            matrix[row, low] += 1 - (place - low)
            matrix[row, min(low + 1, small - 1)] += place - low
        return matrix

    return np.einsum(
        "yh,bchw,xw->bcyx", weights(values.shape[2], height), values, weights(values.shape[3], width)
    )


def test_pyramid_noise_has_low_frequencies():
    plain, pyramid = NoiseLaw(), NoiseLaw(pyramid_discount=0.8)
    shape = torch.Size((200, 1, 32, 32))
    means = [law.sample(shape, generator(4)).mean((2, 3)).std().item() for law in (plain, pyramid)]
    assert means[0] == pytest.approx(1 / 32, rel=0.2)
    assert means[1] > 5 * means[0]


@pytest.mark.parametrize("kind", ["l2", "l1", "huber", "smooth_l1"])
@pytest.mark.parametrize("schedule", ["constant", "exponential", "snr"])
def test_penalties_by_hand(kind: str, schedule: str):
    c, steps = 0.2, [0, 300, 999]
    objective = ddpm(CONFIG, loss=kind, huber_c=c, huber_schedule=schedule)
    prediction = torch.tensor([0.3, -2.0, 0.0]).view(3, 1, 1, 1)
    target = torch.tensor([0.1, 1.0, 0.0]).view(3, 1, 1, 1)
    found = objective.penalty(prediction, target, torch.tensor(steps)).flatten().tolist()
    for value, t, d in zip(found, steps, (0.2, -3.0, 0.0), strict=True):
        sigma = math.sqrt((1 - alpha_bar(t)) / alpha_bar(t))
        k = {
            "constant": c,
            "exponential": math.exp(-(-math.log(c) / 1000) * t),
            "snr": (1 - c) / (1 + sigma) ** 2 + c,
        }[schedule]
        expected = {
            "l2": d * d,
            "l1": abs(d),
            "huber": 2 * k * (math.sqrt(d * d + k * k) - k),
            "smooth_l1": 2 * (math.sqrt(d * d + k * k) - k),
        }[kind]
        assert value == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_penalty_of_flow_matching():
    """sigma = t / (1 - t), so the snr schedule is c + (1 - c) (1 - t)^2; also at pure noise."""
    section = ObjectiveSection(loss="huber", huber_c=0.1)
    t = torch.tensor([0.0, 0.25, 1.0])
    torch.testing.assert_close(make_penalty(section).threshold(t), 0.1 + 0.9 * (1 - t) ** 2)
    section = ObjectiveSection(loss="huber", huber_c=0.1, huber_schedule="exponential")
    torch.testing.assert_close(make_penalty(section).threshold(t), 0.1**t)
    zeros = torch.zeros(3, 2, 2, 2)
    assert make_penalty(section)(zeros + 1, zeros, t).shape == zeros.shape


@pytest.mark.parametrize("law", ["logit_normal", "sigmoid", "mode"])
def test_timesteps_of_other_laws_are_their_quantiles(law: str):
    """Against the distribution function, inverted by bisection in float64."""
    options = {"logit_normal": {"logit_mean": 0.5, "logit_std": 0.8}, "sigmoid": {"sigmoid_scale": 1.5}}
    objective = ddpm(CONFIG, timesteps=(200, 800), timestep_law=law, **options.get(law, {}))
    draws = torch.rand(2000, generator=generator(6)).double().numpy()
    found = objective.sample_t(torch.Size((2000, 4, 8, 8)), generator(6)).numpy()
    assert found.min() >= 200
    assert found.max() < 800
    mean, std = (0.5, 0.8) if law == "logit_normal" else (0.0, 1.5)
    for u, t in zip(draws[:200], found, strict=False):
        if law == "mode":
            expected = 1 - u - 1.29 * (math.cos(math.pi / 2 * u) ** 2 - 1 + u)
        else:
            low, high = 0.0, 1.0
            while high - low > 1e-9:
                middle = (low + high) / 2
                below = 0.5 * (1 + math.erf((math.log(middle / (1 - middle)) - mean) / std / math.sqrt(2)))
                low, high = (middle, high) if below < u else (low, middle)
            expected = low
        assert abs(t - (200 + 600 * expected)) <= 1.01


def test_flow_matching_shares_penalty_and_perturbation():
    section = ObjectiveSection(loss="huber", huber_c=0.1, input_perturbation=0.1)
    objective = flow_matching({"shift": 3.0}, section, patch=2)
    draws = generator(1)
    noise = objective.sample_noise(SHAPE, draws)
    again = generator(1)
    shown = torch.randn(SHAPE, generator=again) + 0.1 * torch.randn(SHAPE, generator=again)
    torch.testing.assert_close(objective.perturb(noise, draws), shown)
    t, zeros = torch.full((6,), 0.5), torch.zeros(SHAPE)
    c = 0.1 + 0.9 * 0.25
    expected = 2 * c * (math.sqrt(1 + c * c) - c)
    assert objective.penalty(zeros + 1, zeros, t).mean().item() == pytest.approx(expected, rel=1e-5)
    for odd in ({"weighting": "debiased"}, {"pyramid_discount": 0.5}, {"zero_terminal_snr": "on"}):
        with pytest.raises(BadInput, match="means nothing to a base that is trained by flow matching"):
            flow_matching({}, ObjectiveSection(**odd), patch=2)
    with pytest.raises(BadInput, match="means nothing to a base that is trained by diffusion"):
        ddpm(CONFIG, shift="dynamic")


def test_previews_follow_the_noise_schedule_that_is_trained(tiny_sd21):
    """With zero terminal SNR sampling begins at pure noise: last timestep, alpha-bar 0."""
    family = FAMILIES["sd21"].load_class()(
        BaseFiles(str(tiny_sd21)), dtype=torch.float32, device=torch.device("cpu")
    )
    for word, ends_at_zero in (("auto", False), ("on", True)):
        section = ObjectiveSection(zero_terminal_snr=word)
        sampler = make_sampler(family, "DDIM", noise_schedule(family.scheduler_config(), section))
        sampler.set_timesteps(4)
        assert (float(sampler.alphas_cumprod[-1]) < 1e-6) == ends_at_zero
        assert (int(sampler.timesteps[0]) == 999) == ends_at_zero
