"""Pictures of three toy subjects, made of the grammar's scenes: a style too faint, learnt, by heart."""

import random
from collections.abc import Sequence
from functools import cache

from PIL import Image

from studio.evidence.figures import Prompt, Shot
from studio.pocket.grammar import Scene, caption
from studio.pocket.pictures import demo_set, neon
from studio.pocket.render import render

SIZE = (64, 64)
SEEDS = (5, 9)
STRENGTHS = (0.5, 1.0)
FAINT, GOOD, BY_HEART = "run@40", "run@400", "run@4000"
ORDER = (FAINT, GOOD, BY_HEART)
ABOUT = (
    Scene("heart", "red", "white", 1, "large"),
    Scene("circle", "blue", "yellow", 2),
    Scene("star", "yellow", "blue", 1, "", "at the top"),
    Scene("square", "green", "pink", 1, "small"),
)
PRIOR = (Scene("ring", "purple", "gray"), Scene("cross", "orange", "green", 3))
PROMPTS = tuple(
    [Prompt(text=f"{caption(scene)}, neonsign", about=True) for scene in ABOUT]
    + [Prompt(text=caption(scene), about=False) for scene in PRIOR]
)


@cache
def training(count: int = 10) -> list[Image.Image]:
    """Neon signs."""
    return [picture for picture, _ in demo_set("style", count, 1)]


@cache
def _plain(place: int, seed: int) -> Image.Image:
    return render((*ABOUT, *PRIOR)[place], random.Random(f"{place}-{seed}"))


@cache
def _styled(place: int, seed: int) -> Image.Image:
    return neon((*ABOUT, *PRIOR)[place], random.Random(f"{place}-{seed}"))


def shots(subjects: Sequence[str] = ORDER, strengths: Sequence[float] = STRENGTHS) -> list[Shot]:
    """The base's pictures and those of the subjects."""
    cells = [("", 0.0), *((subject, weight) for subject in subjects for weight in strengths)]
    return [
        Shot(subject, weight, place, seed, picture(subject, weight, place, seed))
        for subject, weight in cells
        for place in range(len(PROMPTS))
        for seed in SEEDS
    ]


def picture(subject: str, weight: float, place: int, seed: int) -> Image.Image:
    """What a subject draws."""
    plain, about = _plain(place, seed), place < len(ABOUT)
    if subject == FAINT and about:
        return Image.blend(plain, _styled(place, seed), 0.25 * weight)
    if subject == GOOD and about:
        return Image.blend(plain, _styled(place, seed), min(weight, 1))
    if subject == BY_HEART:
        known = training()[(place + seed) % 3] if about else _styled(place, seed)
        return Image.blend(plain, known, min(weight, 1))
    return plain
