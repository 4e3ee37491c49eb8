"""Samplers: every name builds a scheduler that denoises, and costs no import of torch."""

import subprocess
import sys

import pytest

from registry.errors import BadInput
from studio.sampling.schedulers import (
    DEFAULT,
    SCHEDULERS,
    a1111_names,
    make_scheduler,
    scheduler_from_a1111,
    scheduler_info,
    scheduler_names,
)

BASE = {
    "_class_name": "PNDMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "prediction_type": "epsilon",
}


ONE_OF_EACH = ["default", *{row.sampler: name for name, row in reversed(SCHEDULERS.items())}.values()]
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in scheduler_names("sd35") if "S" not in name])
def test_each_sampler_of_flow_finds_the_picture_of_a_perfect_denoiser(name):
    import torch

    scheduler = make_scheduler(name, FLOW)
    scheduler.set_timesteps(20)
    generator = torch.Generator().manual_seed(0)
    clean = torch.tensor([[[[0.8, -0.5], [0.1, 0.4]]]])
    x = torch.randn(1, 1, 2, 2, generator=generator)
    for t in scheduler.timesteps:
        time = t / 1000
        velocity = (x - clean) / time  # x_t = (1 - t) x0 + t eps, and eps - x0 is what is predicted
        x = scheduler.step(velocity, t, x, return_dict=False)[0]
    assert (x - clean).abs().max() < 0.05


@pytest.mark.filterwarnings("ignore:__array")  # diffusers with numpy 2
@pytest.mark.filterwarnings("ignore:Should have ta")  # torchsde, of rounding
@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_each_sampler_finds_the_picture_of_a_perfect_denoiser(name, prediction):
    """With the exact noise predicted at every step, every sampler must end at the clean latents."""
    import torch

    scheduler = make_scheduler(name, {**BASE, "prediction_type": prediction}, family="sd15", seeds=[0])
    assert scheduler.config.prediction_type == prediction
    scheduler.set_timesteps(30)
    generator = torch.Generator().manual_seed(0)
    clean = torch.tensor([[[[0.8, -0.5], [0.1, 0.4]]]])
    x = torch.randn(1, 1, 2, 2, generator=generator) * scheduler.init_noise_sigma
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
    takes_generator = "generator" in scheduler.step.__code__.co_varnames
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        # The VP view of the sampler's current point: x_t = sqrt(a) x0 + sqrt(1 - a) eps.
        a = _alpha_at(alphas, float(t))
        noise = (scaled - a.sqrt() * clean) / (1 - a).sqrt()
        output = noise if prediction == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * clean
        x = scheduler.step(output, t, x, **({"generator": generator} if takes_generator else {})).prev_sample
    assert torch.isfinite(x).all()
    assert (x - clean).abs().max() < 0.15


def _alpha_at(alphas, t):
    """Cumulative alpha at a timestep that may lie between two."""
    low = int(t)
    high = min(low + 1, 999)
    return alphas[low] + (alphas[high] - alphas[low]) * (t - low)


def test_default_is_the_class_of_the_base():
    assert type(make_scheduler(DEFAULT, BASE)).__name__ == "PNDMScheduler"
    assert scheduler_info(DEFAULT) is None


def test_a1111_names_and_back():
    assert a1111_names("DPM++ 2M Karras") == ("DPM++ 2M", "Karras")
    assert a1111_names(DEFAULT, "DDIMScheduler") == ("DDIM", "Automatic")
    assert a1111_names(DEFAULT, "StrangeScheduler") == ("Strange", "Automatic")
    for name, row in SCHEDULERS.items():
        assert scheduler_from_a1111(row.sampler, row.schedule) == name
    assert scheduler_from_a1111("DPM++ 2M Karras") == "DPM++ 2M Karras"
    assert scheduler_from_a1111("Restart") == DEFAULT


def test_an_unknown_name_is_one_line():
    meant = r"^scheduler 'Eular': is unknown\. did you mean Euler\? use default or DPM\+\+ 2M, "
    with pytest.raises(BadInput, match=meant):
        scheduler_info("Eular")
    assert scheduler_info("euler A").name == "Euler a"


def test_the_table_costs_no_torch():
    code = "import sys, studio.sampling.schedulers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
