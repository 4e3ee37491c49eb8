"""What is refused of a request before it waits: modes that do not fit each other, the base or the steps."""

from registry.errors import BadInput
from registry.records import Base
from studio.sampling.control.kinds import HOLE
from studio.sampling.request import SampleRequest
from studio.sampling.steps import check_strength
from trainers.families import FAMILIES

REFINED = "sdxl"  # the family that has a refiner


def is_refiner(base: Base) -> bool:
    """Whether it finishes the pictures of another base."""
    return base.variant.endswith("refiner")


def check_modes(request: SampleRequest, base: Base, refiner: Base | None = None) -> None:
    """Refuse what cannot be drawn.

    Args:
        request: As asked for.
        base: The request's base.
        refiner: The base that `request.refiner` names.

    Raises:
        BadInput: in one line, with what to do.
    """
    if is_refiner(base):
        do = "draw with an SDXL base, and give this one as its refiner"
        raise BadInput(f"base {base.name}", "is a refiner, which finishes the pictures of another base", do)
    _check_picture(request)
    if any(control.kind == HOLE for control in request.controls) and not (
        request.mask or any(request.outpaint)
    ):
        raise BadInput(f"control {HOLE}", "needs a mask", "give image and mask, or another kind")
    if request.upscale:
        _check_upscale(request)
    flow = FAMILIES[base.family].flow
    if request.image:
        check_strength(request.steps, request.strength, flow=flow)
    if request.hires:
        steps = request.hires.steps or request.steps
        check_strength(steps, request.hires.strength, flow=flow, thing="hires.strength")
    if refiner is not None:
        _check_refiner(base, refiner)


def _check_picture(request: SampleRequest) -> None:
    if request.image:
        if request.only_masked and not (request.mask or any(request.outpaint)):
            raise BadInput("only_masked", "needs a mask", "give a mask, or leave it out")
        if request.hires and (request.mask or any(request.outpaint)):
            raise BadInput("hires", "does not go with a mask", "inpaint first, then enlarge the result")
        return
    for field, given in (
        ("mask", request.mask),
        ("outpaint", any(request.outpaint)),
        ("upscale", request.upscale),
    ):
        if given:
            raise BadInput(field, "needs a picture", "give an image")


def _check_upscale(request: SampleRequest) -> None:
    assert request.upscale is not None
    others = {
        "mask": request.mask, "outpaint": any(request.outpaint), "hires": request.hires,
        "refiner": request.refiner,
    }  # fmt: skip
    for field, given in others.items():
        if given:
            raise BadInput("upscale", f"does not go with {field}", "do one after the other")
    least = min(request.width, request.height)
    if request.upscale.overlap * 2 > least:
        wrong = f"is more than half a tile of {request.width}x{request.height}"
        raise BadInput(f"upscale.overlap {request.upscale.overlap}", wrong, f"take {least // 4} or so")


def _check_refiner(base: Base, refiner: Base) -> None:
    thing = f"refiner {refiner.name}"
    if base.family != REFINED:
        raise BadInput(
            thing, f"is for SDXL, base {base.name} is {FAMILIES[base.family].label}", "leave it out"
        )
    if not is_refiner(refiner):
        do = "add one: studio bases add NAME stabilityai/stable-diffusion-xl-refiner-1.0"
        raise BadInput(thing, "is a base, not a refiner", do)
