"""Formulas against diffusers' scheduler, a calculation in float64, and properties."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.errors import BadInput
from trainers.objectives import DDPM, ddpm

CONFIG = {
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
}  # fmt: skip


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
    exact = DDPM(torch.tensor([0.9, 0.0]), "epsilon", 5.0, timesteps=(0, 2))
    assert exact.weight(torch.tensor([1])).item() == 1.0


def test_unknown_prediction_is_refused_in_one_line():
    with pytest.raises(BadInput, match=r"predicts 'sample'\. use a base") as error:
        ddpm(CONFIG | {"prediction_type": "sample"})
    assert "\n" not in str(error.value)


def test_epsilon_at_zero_terminal_snr_is_refused():
    with pytest.raises(BadInput, match="ends at zero signal"):
        ddpm(CONFIG | {"rescale_betas_zero_snr": True})
