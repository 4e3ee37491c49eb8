"""Noise levels and times of every sampler are those of diffusers' class, made by hand with its options."""

import inspect
from itertools import pairwise
from time import process_time
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_utils import AysSchedules

from registry.errors import BadInput
from studio.sampling.schedulers import (
    SCHEDULERS,
    _built,
    aligned_timesteps,
    check_scheduler,
    make_scheduler,
    scheduler_from_a1111,
    scheduler_info,
    scheduler_names,
)
from trainers.families import FAMILIES

STEPS = 12
SHAPE = (1, 16, 64, 64)
DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# As the published bases have them.
CONFIGS: dict[str, dict[str, Any]] = {
    "sd15": {"_class_name": "PNDMScheduler", "num_train_timesteps": 1000, "skip_prk_steps": True,
             "set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False, "trained_betas": None,
             **DIFFUSION},
    "sd21": {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "prediction_type": "v_prediction",
             "set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False, "trained_betas": None,
             **DIFFUSION},
    "sdxl": {"_class_name": "EulerDiscreteScheduler", "num_train_timesteps": 1000, "steps_offset": 1,
             "prediction_type": "epsilon", "timestep_spacing": "leading", "interpolation_type": "linear",
             "use_karras_sigmas": False, "sample_max_value": 1.0, "set_alpha_to_one": False, **DIFFUSION},
    "sd35": {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0},
    "flux1": {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0,
              "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15,
              "base_image_seq_len": 256, "max_image_seq_len": 4096},
}  # fmt: skip
# What a class is told about a base's noise, where it takes that.
ABOUT = {
    "sd15": {**DIFFUSION, "steps_offset": 1, "set_alpha_to_one": False},
    "sd21": {**DIFFUSION, "steps_offset": 1, "set_alpha_to_one": False, "prediction_type": "v_prediction"},
    "sdxl": {**DIFFUSION, "steps_offset": 1, "set_alpha_to_one": False, "timestep_spacing": "leading"},
}
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "DPM++ 3M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}),
    "DPM++ SDE": ("DPMSolverSDEScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "LMS": ("LMSDiscreteScheduler", {}),
    "DPM2": ("KDPM2DiscreteScheduler", {}),
    "DPM2 a": ("KDPM2AncestralDiscreteScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "DEIS": ("DEISMultistepScheduler", {}),
    "DDIM": ("DDIMScheduler", {}),
    "DDPM": ("DDPMScheduler", {}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
    "LCM": ("LCMScheduler", {}),
    "TCD": ("TCDScheduler", {}),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "Automatic": {},
    "Karras": {"use_karras_sigmas": True},
    "Exponential": {"use_exponential_sigmas": True},
    "Beta": {"use_beta_sigmas": True},
    "SGM Uniform": {"timestep_spacing": "trailing"},
    "Simple": {"timestep_spacing": "trailing"},
}
FLOW_CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "Euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "Heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "LCM": ("FlowMatchLCMScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "UniPC": ("UniPCMultistepScheduler", {}),
}
# Each class is made as diffusers makes it with these schedules, one family each, else with few levels.
WHOLE = {"Automatic": "sd15", "Karras": "sd21", "SGM Uniform": "sdxl"}
EVERY = [name for name in SCHEDULERS if not SCHEDULERS[name].aligned]
pytestmark = pytest.mark.filterwarnings("ignore:__array")  # diffusers with numpy 2


def by_hand(cls: Any, wanted: dict[str, Any], *, whole: bool = True) -> Any:
    """The class with those of the options that it takes.

    Unless `whole`, what it works out when made and works out anew once it knows the steps (up to a second's
    work) is of few steps.
    """
    takes, computed = inspect.signature(cls.__init__).parameters, cls.set_timesteps

    def begin(self: Any, steps: int, *rest: Any) -> None:
        computed(self, steps if whole else 10, *rest)

    with mock.patch.object(cls, "set_timesteps", begin):
        return cls(**{key: value for key, value in wanted.items() if key in takes})


def levels(scheduler: Any) -> list[np.ndarray]:
    """Times, and noise levels where the class has them."""
    found = [scheduler.timesteps, getattr(scheduler, "sigmas", None)]
    return [np.asarray(values, dtype=np.float64) for values in found if values is not None]


def same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    pairs = list(zip(levels(ours), levels(theirs), strict=True))
    assert pairs
    for mine, wanted in pairs:
        np.testing.assert_array_equal(mine, wanted)


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
@pytest.mark.parametrize("name", EVERY)
def test_levels_of_diffusion(name: str, family: str):
    row = SCHEDULERS[name]
    cls, options = CLASSES[row.sampler]
    ours = make_scheduler(name, CONFIGS[family], family=family)
    wanted = {**ABOUT[family], **options, **OPTIONS[row.schedule]}
    theirs = by_hand(getattr(diffusers, cls), wanted, whole=family == WHOLE.get(row.schedule))
    ours.set_timesteps(STEPS)
    theirs.set_timesteps(STEPS)
    same(ours, theirs)
    assert ours.config.prediction_type == CONFIGS[family].get("prediction_type", "epsilon")


@pytest.mark.parametrize("family", ["sd35", "flux1"])
@pytest.mark.parametrize("name", [name for name in EVERY if SCHEDULERS[name].flow])
def test_levels_of_flow_matching(name: str, family: str):
    row, dynamic = SCHEDULERS[name], family == "flux1"
    cls, options = FLOW_CLASSES[row.sampler]
    ours = make_scheduler(name, CONFIGS[family], family=family)
    wanted = {"shift": 3.0, "use_dynamic_shifting": dynamic, **options}
    if not cls.startswith("FlowMatch"):
        wanted |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    elif row.schedule in ("Karras", "Exponential", "Beta"):
        wanted |= OPTIONS[row.schedule]
    theirs = by_hand(getattr(diffusers, cls), wanted)
    mu = {"mu": 0.8} if dynamic and row.sampler != "Heun" else {}  # Heun has no mu: `begin` makes it a shift
    ours.set_timesteps(STEPS, **mu)
    theirs.set_timesteps(STEPS, **mu)
    same(ours, theirs)
    assert float(ours.sigmas[-1]) == 0, "it ends at the picture"


def test_each_is_fresh_and_made_in_a_moment():
    """DPM2 would work out the levels of a thousand times when it is made."""
    _built.cache_clear()
    start = process_time()
    first = make_scheduler("DPM2", CONFIGS["sd15"])
    assert process_time() - start < 0.1
    first.set_timesteps(STEPS)
    second = make_scheduler("DPM2", CONFIGS["sd15"])
    assert len(second.sigmas) < len(first.sigmas)
    assert second.num_inference_steps != STEPS
    assert type(second).set_timesteps is diffusers.KDPM2DiscreteScheduler.set_timesteps


def test_published_steps():
    for family, key in (("sd15", "StableDiffusionTimesteps"), ("sdxl", "StableDiffusionXLTimesteps")):
        for sampler in ("DPM++ 2M", "DPM++ 2M SDE", "Euler"):
            cls, options = CLASSES[sampler]
            ours = make_scheduler(f"{sampler} Align Your Steps", CONFIGS[family], family=family)
            theirs = by_hand(getattr(diffusers, cls), {**ABOUT[family], **options})
            ours.set_timesteps(10)
            theirs.set_timesteps(timesteps=AysSchedules[key])
            same(ours, theirs)


def test_steps_between_the_published_ones():
    alphas = make_scheduler("DDIM", CONFIGS["sd15"]).alphas_cumprod.numpy()
    many = aligned_timesteps("sd15", 19, alphas)
    assert many[::2] == AysSchedules["StableDiffusionTimesteps"]
    assert all(before > after for before, after in pairwise(many))
    few = aligned_timesteps("sd15", 4, alphas)
    assert (few[0], few[-1]) == (999, 24)
    with pytest.raises(BadInput, match=r"^500 steps: are too many for Align Your Steps\. use 10 to 50"):
        aligned_timesteps("sd15", 500, alphas)


@pytest.mark.parametrize("flow", [False, True])
def test_a_base_without_published_steps_is_told_so(flow: bool):
    family = "flux1" if flow else "sd21"
    with pytest.raises(
        BadInput, match="flow matching" if flow else "for Stable Diffusion 1.5 and Stable Dif"
    ):
        check_scheduler("Euler Align Your Steps", family)
    assert "Euler Align Your Steps" not in scheduler_names(family)


def test_the_name_replaces_the_levels_of_the_base():
    """A base whose own sampler uses Karras' levels is drawn with those that the name says."""
    config = {**CONFIGS["sdxl"], "use_karras_sigmas": True}
    assert make_scheduler("default", config).config.use_karras_sigmas
    assert not make_scheduler("Euler", config).config.use_karras_sigmas
    assert make_scheduler("Euler Beta", config).config.use_beta_sigmas


def test_every_name_in_both_of_a1111s_spellings():
    for name, row in SCHEDULERS.items():
        assert scheduler_from_a1111(row.sampler, row.schedule) == name
        assert scheduler_from_a1111(name) == name
        assert scheduler_info(name.upper()) is row
    assert scheduler_from_a1111("PLMS") == "PNDM"
    assert scheduler_from_a1111("Euler", "Normal") == "Euler"


def test_every_family_has_samplers():
    for family, info in FAMILIES.items():
        names = scheduler_names(family)
        assert names[0] == "default"
        assert len(names) >= (18 if info.flow else 75)


def test_noise_of_a_path_is_each_pictures_own():
    """DPM++ SDE: a picture is the same alone and in a batch, and another seed gives another one."""
    noise = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))

    def drawn(seeds: list[int], rows: torch.Tensor) -> torch.Tensor:
        scheduler = make_scheduler("DPM++ SDE Karras", CONFIGS["sd15"], seeds=seeds)
        scheduler.set_timesteps(4)
        x = rows * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.step(0.1 * scheduler.scale_model_input(x, t), t, x, return_dict=False)[0]
        return x

    both = drawn([7, 8], noise)
    torch.testing.assert_close(drawn([7], noise[:1]), both[:1])
    torch.testing.assert_close(drawn([8], noise[1:]), both[1:])
    assert (drawn([9], noise[:1]) - both[:1]).abs().max() > 0.01
