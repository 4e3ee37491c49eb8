"""How many steps a strength leaves; torch-free, so that a request is refused before it waits."""

from registry.errors import BadInput


def first_step(steps: int, strength: float, *, flow: bool) -> int:
    """Index of the first of `steps` steps that image-to-image takes.

    Diffusion rounds the number of steps that are left down, flow matching up: as diffusers' pipelines do.
    """
    if flow:
        return int(max(steps - min(steps * strength, steps), 0))
    return max(steps - min(int(steps * strength), steps), 0)


def check_strength(steps: int, strength: float, *, flow: bool, thing: str = "strength") -> None:
    """Refuse a strength that leaves nothing to do.

    Raises:
        BadInput: no step is left.
    """
    if first_step(steps, strength, flow=flow) >= steps:
        wrong = f"leaves no step of {steps}"
        raise BadInput(f"{thing} {strength:g}", wrong, f"take {1 / steps:.2g} or more, or more steps")
