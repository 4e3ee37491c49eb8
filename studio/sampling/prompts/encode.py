"""What the denoiser reads at each step of a `PromptPlan`.

Weights (x:1.3) act on what an encoder says, not on what it reads: every token's output times its weight, then
all of the portion times one factor that restores its mean (A1111's original emphasis). CLIP and T5 alike;
what is pooled stays as it is. Where portions are joined, the first one's pooled vector counts.

A prompt without syntax that fits into one portion gives exactly `family.encode_text([text])`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from registry.errors import BadInput
from studio.sampling.prompts.chunks import Chunk, chunked, chunks_of, cut_from
from studio.sampling.prompts.parse import PromptPlan, Reading
from trainers.families.base import Conditioning
from trainers.families.common import TextToImage
from trainers.guidance import SHARE
from trainers.new_tokens import clip_encoders

Parts = tuple[tuple[Reading, float], ...]  # of one step


@dataclass(frozen=True)
class Schedule:
    """What the denoiser reads while a pass goes on.

    Args:
        by_step: Of each step; the very same object while nothing changes. Prompts joined by AND are rows of
            one conditioning, with their shares (k,) under `SHARE`.
    """

    by_step: tuple[Conditioning, ...]

    def at(self, number: int) -> Conditioning:
        """At step `number` of the pass, counted from 0; what is behind the last step reads as that."""
        return self.by_step[min(number, len(self.by_step) - 1)]

    def after(self, steps: int) -> "Schedule":
        """The rest, for a pass that goes on where another one stopped."""
        return Schedule(self.by_step[min(steps, len(self.by_step) - 1) :])

    def mapped(self, change: Callable[[Conditioning], Conditioning]) -> "Schedule":
        """With every conditioning changed; steps that shared one still do."""
        made = {id(cond): change(cond) for cond in self.by_step}
        return Schedule(tuple(made[id(cond)] for cond in self.by_step))


def encode(family: TextToImage, plan: PromptPlan, steps: int, *, clip_skip: int = 0) -> Schedule:
    """The schedule of one prompt; see `PromptEncoder` for a prompt beside a negative one."""
    return PromptEncoder(family, clip_skip=clip_skip).schedule(plan, steps)


class PromptEncoder:
    """Reads prompts for one request: what is said twice is encoded once.

    Args:
        family: Loaded, with its adapters and new words in place; they must stay while this is used.
        clip_skip: Layers of CLIP that are left out, counted as A1111 does: 0 and 1 = none, 2 = the last one.
            Families that read the layer before the last count on from there.

    Raises:
        BadInput: no layer is left.
    """

    def __init__(self, family: TextToImage, *, clip_skip: int = 0) -> None:
        self._family, self._skip = family, clip_skip
        self._chunks: dict[tuple[str, Reading], list[Chunk]] = {}
        self._said: dict[tuple[str, Chunk], Conditioning] = {}
        self._made: dict[tuple[Reading, int], Conditioning] = {}
        self._joined: dict[tuple[Parts, int], Conditioning] = {}
        for name in clip_encoders(family) if family.clip_layers else ():
            most = family.most_clip_skip(name)
            if clip_skip > most:
                raise BadInput(f"clip skip {clip_skip}", "leaves no layer of CLIP", f"use at most {most}")

    def schedule(self, plan: PromptPlan, steps: int) -> Schedule:
        """What is read at each of `steps` steps."""
        parts = _by_step(plan, steps)
        return Schedule(tuple(self._composed(now, self._portions(now)) for now in parts))

    def pair(self, plan: PromptPlan, negative: PromptPlan, steps: int) -> tuple[Schedule, Schedule]:
        """Schedules of a prompt and a negative one: at each step both have as many portions.

        The shorter one is filled up with the portion of an empty prompt.
        """
        ours, theirs = _by_step(plan, steps), _by_step(negative, steps)
        sizes = [max(self._portions(a), self._portions(b)) for a, b in zip(ours, theirs, strict=True)]
        return tuple[Schedule, Schedule](
            Schedule(tuple(self._composed(now, size) for now, size in zip(side, sizes, strict=True)))
            for side in (ours, theirs)
        )

    def cut(self, plan: PromptPlan, steps: int) -> int:
        """Most tokens that are not read at some step."""
        readings = {reading for now in set(_by_step(plan, steps)) for reading, _ in now}
        return max(cut_from(self._family, reading) for reading in readings)

    def _portions(self, parts: Parts) -> int:
        return max(len(self._portion(n, r)) for r, _ in parts for n in self._family.text_encoder_names)

    def _portion(self, name: str, reading: Reading) -> list[Chunk]:
        if (name, reading) not in self._chunks:
            self._chunks[name, reading] = chunks_of(self._family, name, reading)
        return self._chunks[name, reading]

    def _composed(self, parts: Parts, portions: int) -> Conditioning:
        """What is read at a step, each part with so many portions."""
        if (parts, portions) not in self._joined:
            conds = [self._conditioning(reading, portions) for reading, _ in parts]
            joined = conds[0]
            if len(conds) > 1:
                joined = {key: torch.cat([cond[key] for cond in conds]) for key in joined}
                joined[SHARE] = torch.tensor([share for _, share in parts], dtype=torch.float64)
            self._joined[parts, portions] = joined
        return self._joined[parts, portions]

    def _conditioning(self, reading: Reading, portions: int) -> Conditioning:
        if (reading, portions) not in self._made:
            outputs: Conditioning = {}
            for name in self._family.text_encoder_names:
                chunks = list(self._portion(name, reading))
                if chunked(self._family):
                    (empty,) = self._portion(name, NO_WORDS)
                    chunks += [empty] * (portions - len(chunks))
                outputs |= {f"{name}.{key}": value for key, value in self._joined_up(name, chunks).items()}
            self._made[reading, portions] = self._family.combine(outputs)
        return self._made[reading, portions]

    def _joined_up(self, name: str, chunks: Sequence[Chunk]) -> Conditioning:
        """What an encoder says of several portions: "hidden" (1, n L, D), "pooled" of the first."""
        said = [self._say(name, chunk) for chunk in chunks]
        joined = dict(said[0])
        if len(said) > 1 and "hidden" in joined:
            joined["hidden"] = torch.cat([one["hidden"] for one in said], dim=1)
        return joined

    @torch.no_grad()
    def _say(self, name: str, chunk: Chunk) -> Conditioning:
        """What an encoder says of one portion, weighted."""
        if (name, chunk) not in self._said:
            ids = torch.tensor([chunk.ids], device=self._family.device)
            said = self._family.encode_ids(name, ids, self._skip)
            if "hidden" in said:
                said = {**said, "hidden": emphasised(said["hidden"], chunk.weights)}
            self._said[name, chunk] = said
        return self._said[name, chunk]


NO_WORDS: Reading = ((),)
NO_MEAN = 1e-5  # of the mean of absolute values: below it a mean is rounding


def emphasised(hidden: Tensor, weights: Sequence[float]) -> Tensor:
    """(1, L, D) with each of L tokens times its weight, and the mean of all restored.

    A mean that is nothing but rounding cannot be restored: then the weights alone count.
    """
    if all(weight == 1.0 for weight in weights):
        return hidden
    exact = hidden.double()
    scaled = exact * torch.tensor(weights, dtype=exact.dtype, device=hidden.device)[None, :, None]
    before, now = exact.mean(), scaled.mean()
    meant = min(abs(before), abs(now)) > NO_MEAN * exact.abs().mean()
    return (scaled * (before / now) if bool(meant) else scaled).to(hidden.dtype)


def _by_step(plan: PromptPlan, steps: int) -> list[Parts]:
    """What is said at each step."""
    if not plan.changes:
        return [plan.at(0, steps)] * steps
    return [plan.at(number, steps) for number in range(steps)]
