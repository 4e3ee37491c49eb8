"""Drawn pictures in order, and whether all are there that a fair comparison needs."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from PIL import Image

from registry.errors import BadInput
from studio.evidence.figures import BASE, Prompt, Shot

Key = tuple[str, float]  # subject, strength


@dataclass(frozen=True)
class Grid:
    """Of each subject and strength the same pictures, by prompt, then by seed; the base first.

    Args:
        pictures: By subject and strength; prompts about what was trained come first.
        about_prompts: Indices of the prompts about what was trained.
        prior_prompts: Indices of the others.
        seeds: Rising.
    """

    pictures: dict[Key, list[Image.Image]]
    about_prompts: tuple[int, ...]
    prior_prompts: tuple[int, ...]
    seeds: tuple[int, ...]

    @property
    def about(self) -> list[int]:
        """Rows of the pictures about what was trained."""
        return list(range(len(self.about_prompts) * len(self.seeds)))

    @property
    def prior(self) -> list[int]:
        """Rows of the others."""
        start = len(self.about_prompts) * len(self.seeds)
        return list(range(start, start + len(self.prior_prompts) * len(self.seeds)))


def grid_of(shots: Sequence[Shot], prompts: Sequence[Prompt]) -> Grid:
    """Sort the shots.

    Raises:
        BadInput: the base's pictures or others are missing, or there are too few prompts or seeds.
    """
    found: dict[Key, dict[tuple[int, int], Image.Image]] = {}
    for shot in shots:
        if not 0 <= shot.prompt < len(prompts):
            raise BadInput(
                _name(shot.subject), f"a picture is of prompt {shot.prompt}", f"there are {len(prompts)}"
            )
        alone = shot.subject == BASE or not shot.weight  # at no strength it is the base
        key = (BASE, 0.0) if alone else (shot.subject, float(shot.weight))
        found.setdefault(key, {})[shot.prompt, shot.seed] = shot.picture
    seeds = tuple(sorted({shot.seed for shot in shots}))
    drawn = {shot.prompt for shot in shots}
    about = tuple(place for place in sorted(drawn) if prompts[place].about)
    prior = tuple(place for place in sorted(drawn) if not prompts[place].about)
    _check_enough(found, about, seeds)
    cells = [(prompt, seed) for prompt in (*about, *prior) for seed in seeds]
    for (subject, weight), pictures in found.items():
        for prompt, seed in cells:
            if (prompt, seed) not in pictures:
                where = f"prompt {prompt} with seed {seed} at strength {weight:g}"
                raise BadInput(_name(subject), f"has no picture of {where}", "draw it, then measure again")
    keys = sorted(found, key=lambda key: key[0] != BASE)
    return Grid({key: [found[key][cell] for cell in cells] for key in keys}, about, prior, seeds)


def _check_enough(found: Collection[Key], about: tuple[int, ...], seeds: tuple[int, ...]) -> None:
    if (BASE, 0.0) not in found:
        raise BadInput("evidence", "there are no pictures of the base alone", "draw them with the same seeds")
    if len(seeds) < 2:
        raise BadInput(
            "evidence", f"there is {len(seeds)} seed", "draw two or more: one says nothing about variety"
        )
    if len(about) < 2:
        wrong = (
            f"{len(about)} of the prompts asks for what was trained"
            if about
            else "no prompt asks for what was trained"
        )
        raise BadInput("evidence", wrong, "draw two or more: what differs between them is measured")
    strengths: dict[str, set[float]] = {}
    for subject, weight in found:
        strengths.setdefault(subject, set()).add(weight)
    strengths.pop(BASE)
    every = set().union(*strengths.values()) if strengths else set[float]()
    for subject, there in strengths.items():
        if missing := sorted(every - there):
            raise BadInput(
                _name(subject),
                f"has no pictures at strength {missing[0]:g}",
                "draw every subject at the same strengths",
            )


def _name(subject: str) -> str:
    return f"evidence of {subject}" if subject else "evidence of the base"
