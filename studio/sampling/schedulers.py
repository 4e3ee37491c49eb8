"""Samplers by the names people know, as a torch-free table of diffusers classes and settings.

A name is a sampler and, behind it, the schedule that its noise levels follow: "DPM++ 2M Karras". `SCHEDULERS`
feeds the command line, the page and the image metadata; `make_scheduler` builds one for a base, keeping the
base's own noise schedule and prediction type.
"""

import copy
import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from registry.errors import BadInput
from trainers.families import FAMILIES

DEFAULT = "default"
ALIGNED = "Align Your Steps"  # Sabour et al. 2024, arXiv:2404.14507

# What each schedule sets. diffusers has no "Simple" of its own: evenly spaced times that begin at full noise,
# which is what SGM Uniform is, too; the two differ by less than one of a thousand times.
SCHEDULES: dict[str, Mapping[str, Any]] = {
    "Automatic": {},
    "Karras": {"use_karras_sigmas": True},  # Karras et al. 2022, arXiv:2206.00364, eq. 5
    "Exponential": {"use_exponential_sigmas": True},
    "Beta": {"use_beta_sigmas": True},  # Lee et al. 2024, arXiv:2407.12173
    "SGM Uniform": {"timestep_spacing": "trailing"},
    "Simple": {"timestep_spacing": "trailing"},
    ALIGNED: {},
}
_FLAGS = tuple(flag for values in SCHEDULES.values() for flag in values if flag.startswith("use_"))
_SDE = {"algorithm_type": "sde-dpmsolver++"}
_SIGMAS = ("Automatic", "Karras", "Exponential", "Beta", "SGM Uniform", "Simple")
_KARRAS_FIRST = ("Karras", "Automatic", *_SIGMAS[2:])
_SPACED = ("Automatic", "SGM Uniform", "Simple")
# Family -> its published steps in diffusers' AysSchedules; other bases have none.
_ALIGNED_STEPS = {"sd15": "StableDiffusionTimesteps", "sdxl": "StableDiffusionXLTimesteps"}
_ALIASES = {"plms": "PNDM"}  # A1111's name for it


@dataclass(frozen=True)
class SchedulerInfo:
    """One sampler with one schedule.

    Args:
        name: As in A1111, schedule type included: "DPM++ 2M Karras".
        cls: Class in diffusers.
        overrides: Settings on top of the base's own scheduler config.
        sampler: A1111's "Sampler".
        schedule: A1111's "Schedule type".
        evaluations: Model evaluations per step; what a step costs.
        flow: Class in diffusers for bases trained by flow matching; "" = it does not fit them.
        note: What it is good for, one line.
    """

    name: str
    cls: str
    sampler: str
    schedule: str
    note: str
    overrides: Mapping[str, Any] = field(default_factory=dict[str, Any])
    evaluations: int = 1
    flow: str = ""

    @property
    def aligned(self) -> bool:
        """Whether it visits published times instead of computed ones."""
        return self.schedule == ALIGNED

    def fits(self, family: str) -> bool:
        """Whether a base of this family can be drawn with it."""
        flow = FAMILIES[family].flow
        return bool(self.flow) if flow else not self.aligned or family in _ALIGNED_STEPS


def _rows(
    sampler: str,
    cls: str,
    note: str,
    schedules: Sequence[str] = ("Automatic",),
    *,
    overrides: Mapping[str, Any] | None = None,
    evaluations: int = 1,
    flow: str = "",
    flow_schedules: Sequence[str] = ("Automatic",),
) -> list[SchedulerInfo]:
    """The rows of a sampler, one a schedule."""
    return [
        SchedulerInfo(
            name=sampler if schedule == "Automatic" else f"{sampler} {schedule}",
            cls=cls,
            sampler=sampler,
            schedule=schedule,
            note=note,
            overrides={**(overrides or {}), **SCHEDULES[schedule]},
            evaluations=evaluations,
            flow=flow if schedule in flow_schedules else "",
        )
        for schedule in schedules
    ]


_MULTISTEP, _EULER = "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"
FLOW_EULER, FLOW_HEUN = "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"

# DPM++ 3M and the schedules by noise level (Karras, Exponential, Beta) of the solvers have no rows for flow
# matching: diffusers computes their levels for diffusion, from sigma 14.6 down, whatever the base is. DEIS
# has none because it stops before the end there: its last noise level is repeated instead of zero.
_ROWS = (
    *_rows("DPM++ 2M", _MULTISTEP, "the usual choice, 20 to 30 steps", (*_KARRAS_FIRST, ALIGNED),
           flow=_MULTISTEP, flow_schedules=_SPACED),
    *_rows("DPM++ 2M SDE", _MULTISTEP, "more detail, needs more steps", (*_KARRAS_FIRST, ALIGNED),
           overrides=_SDE, flow=_MULTISTEP, flow_schedules=_SPACED),
    *_rows("DPM++ 3M SDE", _MULTISTEP, "for 40 steps and more", _SIGMAS,
           overrides=_SDE | {"solver_order": 3}),
    *_rows("DPM++ SDE", "DPMSolverSDEScheduler", "good at few steps, twice the time", _KARRAS_FIRST,
           evaluations=2),
    *_rows("Euler", _EULER, "plain and predictable", (*_SIGMAS, ALIGNED), flow=FLOW_EULER,
           flow_schedules=_SIGMAS),
    *_rows("Euler a", "EulerAncestralDiscreteScheduler", "adds noise at every step; never settles", _SPACED),
    *_rows("Heun", "HeunDiscreteScheduler", "exact, twice the time", _SIGMAS, evaluations=2, flow=FLOW_HEUN),
    *_rows("LMS", "LMSDiscreteScheduler", "the first of the fast ones, 30 steps and more", _SIGMAS),
    *_rows("DPM2", "KDPM2DiscreteScheduler", "exact, twice the time", _SIGMAS, evaluations=2),
    *_rows("DPM2 a", "KDPM2AncestralDiscreteScheduler", "fresh noise, twice the time", _SIGMAS,
           evaluations=2),
    *_rows("UniPC", "UniPCMultistepScheduler", "good in 10 to 15 steps", _SIGMAS,
           flow="UniPCMultistepScheduler", flow_schedules=_SPACED),
    *_rows("DEIS", "DEISMultistepScheduler", "good in 10 to 20 steps", _SIGMAS),
    *_rows("DDIM", "DDIMScheduler", "deterministic; what training previews use", _SPACED),
    *_rows("DDPM", "DDPMScheduler", "the original; needs hundreds of steps", _SPACED),
    *_rows("PNDM", "PNDMScheduler", "the first of Stable Diffusion", overrides={"skip_prk_steps": True}),
    *_rows("LCM", "LCMScheduler", "4 to 8 steps, only with an LCM base or adapter, guidance 1 to 2",
           flow="FlowMatchLCMScheduler"),
    *_rows("TCD", "TCDScheduler", "4 to 8 steps, only with a TCD adapter, guidance 1"),
)  # fmt: skip

SCHEDULERS: dict[str, SchedulerInfo] = {row.name: row for row in _ROWS}


def scheduler_names(family: str = "") -> list[str]:
    """What a request may name, the base's own first; `family`: only what fits a base of it."""
    return [DEFAULT, *(name for name, row in SCHEDULERS.items() if not family or row.fits(family))]


def samplers_help() -> str:
    """All names in one sentence, for `--help`."""
    samplers = ", ".join(dict.fromkeys(row.sampler for row in _ROWS))
    schedules = ", ".join(name for name in SCHEDULES if name != "Automatic")
    return f"{samplers}; a schedule may follow the name: {schedules}"


def check_scheduler(name: str, family: str) -> None:
    """Refuse a sampler that does not fit a base of `family`.

    Raises:
        BadInput: unknown, or not for this kind of base; those that fit are named.
    """
    row = scheduler_info(name)
    if row is None or row.fits(family):
        return
    thing, info = f"scheduler {row.name}", FAMILIES[family]
    if row.aligned and not info.flow:
        labels = " and ".join(FAMILIES[known].label for known in _ALIGNED_STEPS)
        raise BadInput(thing, f"has steps for {labels} only", f"use {row.sampler}")
    raise BadInput(thing, "does not fit a base of flow matching", f"use {', '.join(scheduler_names(family))}")


def scheduler_info(name: str) -> SchedulerInfo | None:
    """Row of `name` (upper or lower case); None for "default".

    Raises:
        BadInput: no such sampler.
    """
    wanted = name.strip().casefold()
    if wanted in {"", DEFAULT}:
        return None
    for row in SCHEDULERS.values():
        if row.name.casefold() == wanted:
            return row
    close = difflib.get_close_matches(name.strip(), SCHEDULERS, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    raise BadInput(f"scheduler {name[:60]!r}", "is unknown", f"{meant}use {DEFAULT} or {samplers_help()}")


def a1111_names(name: str, base_class: str = "") -> tuple[str, str]:
    """A1111's ("Sampler", "Schedule type") for a scheduler; `base_class` says what "default" stands for."""
    row = scheduler_info(name)
    if row is None:
        plain = (r for r in SCHEDULERS.values() if r.schedule == "Automatic")
        row = next((r for r in plain if base_class and base_class in (r.cls, r.flow)), None)
    return (
        (row.sampler, row.schedule)
        if row
        else (base_class.removesuffix("Scheduler") or "Default", "Automatic")
    )


def scheduler_from_a1111(sampler: str, schedule: str = "Automatic") -> str:
    """Our name for A1111's names, the schedule in either of them; "default" when we have none."""
    sampler = _ALIASES.get(sampler.strip().casefold(), sampler)
    for wanted in (f"{sampler} {schedule}", sampler):
        for row in SCHEDULERS.values():
            if row.name.casefold() == wanted.strip().casefold():
                return row.name
    return DEFAULT


def make_scheduler(
    name: str, config: Mapping[str, Any], *, family: str = "", seeds: Sequence[int] = ()
) -> Any:
    """A fresh diffusers scheduler for a base.

    Args:
        name: A key of `SCHEDULERS`, or "default" for the class that `config` names.
        config: Config of the base's own scheduler (`pipe.scheduler.config`): betas, prediction type, spacing.
        family: Of the base; only "Align Your Steps" asks.
        seeds: One for each picture of the batch, for samplers whose noise is a path (DPM++ SDE) instead of
            numbers that they are given; else they draw one.

    Raises:
        BadInput: no such sampler, or none for this base.
    """
    import diffusers  # costs seconds; only where a picture is made

    own = str(config["_class_name"])
    flow = is_flow_config(config)
    row = scheduler_info(name)
    if row is None:
        cls, settings = getattr(diffusers, own), dict(config)
    else:
        if flow and not row.flow:
            raise BadInput(f"scheduler {row.name}", "does not fit a base of flow matching", "use Euler")
        cls = getattr(diffusers, row.flow if flow else row.cls)
        settings = _flow_settings(row, config) if flow else _settings(row, config)
    scheduler = copy.deepcopy(_built(cls, json.dumps(settings)))
    if cls.__name__ == "DPMSolverSDEScheduler" and seeds:
        scheduler.noise_sampler_seed = list(seeds)
    if row is not None and row.aligned:
        _align(scheduler, family)
    return scheduler


@lru_cache(maxsize=16)
def _built(cls: Any, settings: str) -> Any:
    """The class with these settings (JSON), to be copied.

    DPM2 and others work out the levels of all 1,000 times when made, 0.5 to 1 s, and forget them as soon as
    they are told the number of steps. Here they are made with the levels of two.
    """

    def begin(self: Any, steps: int, *rest: Any) -> None:
        cls.set_timesteps(self, min(2, steps), *rest)

    quick: Any = type(cls.__name__, (cls,), {"__module__": cls.__module__, "set_timesteps": begin})
    made = quick.from_config(json.loads(settings))
    made.__class__ = cls
    return made


def is_flow_config(config: Mapping[str, Any]) -> bool:
    """Whether a base's scheduler config is one of flow matching."""
    return str(config["_class_name"]).startswith("FlowMatch") or bool(config.get("use_flow_sigmas"))


def _settings(row: SchedulerInfo, config: Mapping[str, Any]) -> dict[str, Any]:
    """The base's config, but for its own choice of noise levels, which the name replaces."""
    return {key: value for key, value in config.items() if key not in _FLAGS} | dict(row.overrides)


def _flow_settings(row: SchedulerInfo, config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a sampler of flow matching, or of a solver for diffusion in its flow mode, with the base's shift."""
    if row.flow.startswith("FlowMatch"):
        flags = {key: value for key, value in row.overrides.items() if key in _FLAGS}
        return {key: value for key, value in config.items() if key not in _FLAGS} | flags
    solver = {key: value for key, value in row.overrides.items() if key != "timestep_spacing"}
    return {
        "_class_name": row.flow,
        "num_train_timesteps": config.get("num_train_timesteps", 1000),
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": config.get("shift", config.get("flow_shift", 1.0)),
        "use_dynamic_shifting": bool(config.get("use_dynamic_shifting")),
        **solver,
    }


def _align(scheduler: Any, family: str) -> None:
    """Let a scheduler visit the times of `aligned_timesteps`, whatever number of steps it is set to."""
    computed: Callable[..., None] = scheduler.set_timesteps

    def set_timesteps(num_inference_steps: int, device: Any = None) -> None:
        times = aligned_timesteps(family, num_inference_steps, scheduler.alphas_cumprod.numpy())
        computed(device=device, timesteps=times)

    scheduler.set_timesteps = set_timesteps


def aligned_timesteps(family: str, steps: int, alphas: Any) -> list[int]:
    """Times of "Align Your Steps", falling; the ten published ones, else between them in log noise level.

    Args:
        family: A family that has published ones.
        steps: How many.
        alphas: (1000,) cumulative alphas of the base's noise schedule.

    Raises:
        BadInput: so many steps that a time would come twice.
    """
    import numpy as np
    from diffusers.schedulers.scheduling_utils import AysSchedules

    published = [int(t) for t in AysSchedules[_ALIGNED_STEPS[family]]]
    if steps == len(published):
        return published
    levels = np.log((1 - alphas) / alphas) / 2  # log sigma of each time, rising
    places = np.linspace(0, len(published) - 1, steps)
    wanted = np.interp(places, np.arange(len(published)), levels[published])
    times = np.interp(wanted, levels, np.arange(len(levels))).round().astype(int).tolist()
    if len(set(times)) < steps:
        raise BadInput(f"{steps} steps", f"are too many for {ALIGNED}", "use 10 to 50")
    return times
