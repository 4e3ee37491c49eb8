"""Samplers by the names people know, as a torch-free table of diffusers classes and settings.

`SCHEDULERS` feeds the command line, the page and the image metadata; `make_scheduler` builds one for a base,
keeping the base's own noise schedule and prediction type.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from registry.errors import BadInput

DEFAULT = "default"

_KARRAS = {"use_karras_sigmas": True}  # Karras et al. 2022, arXiv:2206.00364, eq. 5
_SDE = {"algorithm_type": "sde-dpmsolver++"}


@dataclass(frozen=True)
class SchedulerInfo:
    """One sampler.

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


def _row(
    sampler: str,
    cls: str,
    note: str,
    schedule: str = "Automatic",
    overrides: Mapping[str, Any] | None = None,
    evaluations: int = 1,
    flow: str = "",
) -> SchedulerInfo:
    name = sampler if schedule == "Automatic" else f"{sampler} {schedule}"
    return SchedulerInfo(name, cls, sampler, schedule, note, overrides or {}, evaluations, flow)


_MULTISTEP, _SINGLESTEP = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
_EULER, _ANCESTRAL = "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"
FLOW_EULER, FLOW_HEUN = "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"

# LMS and beta sigmas are left out: diffusers computes them with scipy, which nothing else here needs.
_ROWS = (
    _row("DPM++ 2M", _MULTISTEP, "the usual choice, 20 to 30 steps", "Karras", _KARRAS),
    _row("DPM++ 2M", _MULTISTEP, "fast and clean in 20 to 30 steps"),
    _row("DPM++ 2M", _MULTISTEP, "spends its steps late", "Exponential", {"use_exponential_sigmas": True}),
    _row("DPM++ 2M SDE", _MULTISTEP, "more detail, needs more steps", "Karras", _SDE | _KARRAS),
    _row("DPM++ 2M SDE", _MULTISTEP, "more detail, needs more steps", overrides=_SDE),
    _row("DPM++ 3M SDE", _MULTISTEP, "for 40 steps and more", overrides=_SDE | {"solver_order": 3}),
    _row("DPM++ SDE", _SINGLESTEP, "good at few steps", "Karras", _SDE | _KARRAS),
    _row("DPM++ SDE", _SINGLESTEP, "good at few steps", overrides=_SDE),
    _row("Euler", _EULER, "plain and predictable", flow=FLOW_EULER),
    _row("Euler", _EULER, "reaches full noise at the start", "SGM Uniform", {"timestep_spacing": "trailing"}),
    _row("Euler a", _ANCESTRAL, "adds noise at every step; never settles"),
    _row("Heun", "HeunDiscreteScheduler", "exact, twice the time", evaluations=2, flow=FLOW_HEUN),
    _row("DPM2", "KDPM2DiscreteScheduler", "exact, twice the time", evaluations=2),
    _row("DPM2 a", "KDPM2AncestralDiscreteScheduler", "fresh noise, twice the time", evaluations=2),
    _row("UniPC", "UniPCMultistepScheduler", "good in 10 to 15 steps"),
    _row("DEIS", "DEISMultistepScheduler", "good in 10 to 20 steps"),
    _row("DDIM", "DDIMScheduler", "deterministic; what training previews use"),
    _row("DDPM", "DDPMScheduler", "the original; needs hundreds of steps"),
    _row("PNDM", "PNDMScheduler", "the first of Stable Diffusion", overrides={"skip_prk_steps": True}),
    _row("LCM", "LCMScheduler", "4 to 8 steps, only with an LCM adapter, guidance 1 to 2"),
    _row("TCD", "TCDScheduler", "4 to 8 steps, only with a TCD adapter, guidance 1"),
)

SCHEDULERS: dict[str, SchedulerInfo] = {row.name: row for row in _ROWS}


def scheduler_names(*, flow: bool = False) -> list[str]:
    """What a request may name, the base's own first; `flow`: for a base trained by flow matching."""
    return [DEFAULT, *(name for name, row in SCHEDULERS.items() if row.flow or not flow)]


def check_scheduler(name: str, *, flow: bool) -> None:
    """Refuse a sampler that does not fit the base.

    Raises:
        BadInput: unknown, or not for a base trained by flow matching; those that fit are named.
    """
    row = scheduler_info(name)
    if flow and row is not None and not row.flow:
        fitting = ", ".join(scheduler_names(flow=True))
        raise BadInput(f"scheduler {row.name}", "does not fit a base of flow matching", f"use {fitting}")


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
    raise BadInput(f"scheduler {name[:60]!r}", "is unknown", f"use one of {', '.join(scheduler_names())}")


def a1111_names(name: str, base_class: str = "") -> tuple[str, str]:
    """A1111's ("Sampler", "Schedule type") for a scheduler; `base_class` says what "default" stands for."""
    row = scheduler_info(name)
    if row is None:
        row = next((r for r in SCHEDULERS.values() if base_class in (r.cls, r.flow)), None)
    return (
        (row.sampler, row.schedule)
        if row
        else (base_class.removesuffix("Scheduler") or "Default", "Automatic")
    )


def scheduler_from_a1111(sampler: str, schedule: str = "Automatic") -> str:
    """Our name for A1111's names, the schedule in either of them; "default" when we have none."""
    for wanted in (f"{sampler} {schedule}", sampler):
        for row in SCHEDULERS.values():
            if row.name.casefold() == wanted.strip().casefold():
                return row.name
    return DEFAULT


def make_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """A fresh diffusers scheduler for a base.

    Args:
        name: A key of `SCHEDULERS`, or "default" for the class that `config` names.
        config: Config of the base's own scheduler (`pipe.scheduler.config`): betas, prediction type, spacing.

    Raises:
        BadInput: no such sampler, or none for this base.
    """
    import diffusers  # costs seconds; only where a picture is made

    own = str(config["_class_name"])
    flow = own.startswith("FlowMatch")
    check_scheduler(name, flow=flow)
    row = scheduler_info(name)
    if row is None or flow:
        cls: Any = getattr(diffusers, row.flow if row else own)
        return cls.from_config(dict(config))
    cls = getattr(diffusers, row.cls)
    return cls.from_config(dict(config), **row.overrides)
