"""What the pocket bases have in common: material on the device, what a step draws, how it is judged."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from studio.pocket.build.networks import Network, make_diffusion_scheduler
from studio.pocket.build.replay import Inputs

EMPTY_CAPTIONS = 0.1  # share of pictures shown without words, for guidance (Ho and Salimans 2022)
SNR_GAMMA = 5.0  # min-SNR weighting (Hang et al. 2023, sec. 3.4)
TRAIN_STEPS = 1000  # noise levels of diffusion
TOKENIZED_AT_ONCE = 4096


@dataclass(frozen=True)
class Texts:
    """Captions as token ids.

    Args:
        wordings: (N, W) rows of the tables: captions of each picture.
        ids: By text encoder, "ids", "ids_2", ...: (texts, L) int16; row 0 is the empty caption.
    """

    wordings: Tensor
    ids: dict[str, Tensor]

    @property
    def different(self) -> int:
        """How many different ones there are."""
        return len(next(iter(self.ids.values())))


@dataclass(frozen=True)
class Material:
    """What a denoiser learns from, all on one device.

    Args:
        latents: (N, C, 16, 16), shifted and scaled, in fp16.
        texts: What they show.
    """

    latents: Tensor
    texts: Texts


@dataclass(frozen=True)
class Part:
    """Part of a base's training. Parts follow one another, each from the averaged weights of the one before.

    Args:
        name: For messages and files.
        share: Of the time, or of the steps.
        models: Names of those that learn; the others stay as they are.
        draw: As `Kind.draw`.
        loss: As `Kind.loss`.
        helpers: Learn too and are thrown away.
        report: What was learned, in words; None = pictures judge it.
        rate: Times the learning rate.
        hold: Share of the part before the rate falls.
        begin: Called first, with the weights that the parts before have left.
    """

    name: str
    share: float
    models: tuple[str, ...]
    draw: Callable[[Material, int, torch.Generator], Inputs]
    loss: Callable[[Inputs], Tensor]
    helpers: tuple[nn.Module, ...] = ()
    report: Callable[[], str] | None = None
    rate: float = 1.0
    hold: float = 0.25
    begin: Callable[[], None] | None = None


class Kind(ABC):
    """A pocket base: its networks, its objective, its pipeline.

    Attributes:
        tokenizers: By their name in the pipeline.
        models: What is trained, by name in the pipeline.
    """

    peak_lr: ClassVar[float]  # at a batch of 256
    half: ClassVar[bool] = False  # whether a GPU computes in bf16; small convolutions gain nothing by it
    tokenizers: dict[str, Any]
    models: dict[str, Network]

    @abstractmethod
    def draw(self, material: Material, batch: int, generator: torch.Generator) -> Inputs:
        """What a step reads, everything random included."""

    @abstractmethod
    def loss(self, inputs: Inputs) -> Tensor:
        """Loss of that, by the family's objective."""

    @abstractmethod
    def pipeline(self, vae: Network, models: dict[str, Network]) -> Any:
        """The diffusers pipeline of the family with these parts."""

    def parts(self) -> list[Part]:
        """How it is trained; all at once when it says nothing else."""
        return [Part("", 1.0, tuple(self.models), self.draw, self.loss)]

    def read(self, captions: list[list[str]], device: torch.device) -> Texts:
        """Token ids of the captions of each picture, each different text once, on the device."""
        known: dict[str, int] = {"": 0}
        rows = [[known.setdefault(text, len(known)) for text in texts] for texts in captions]
        return Texts(torch.tensor(rows, device=device), self.ids(list(known), device))

    def ids(self, texts: list[str], device: torch.device) -> dict[str, Tensor]:
        """Token ids by text encoder, "ids", "ids_2", ...: (texts, L) int16."""
        return {
            name.replace("tokenizer", "ids"): torch.from_numpy(_ids(tokenizer, texts)).to(device)
            for name, tokenizer in self.tokenizers.items()
        }

    def to(self, device: torch.device) -> "Kind":
        """Put the networks there."""
        for model in self.models.values():
            model.to(device)
        return self


def draw_common(material: Material, batch: int, generator: torch.Generator, empty_share: Tensor) -> Inputs:
    """Latents, noise, token ids and "u", stratified numbers in 0..1: one in each B-th.

    Args:
        material: See there.
        batch: B.
        generator: On the material's device.
        empty_share: (B,) how probable it is that a picture is shown without words.
    """
    device = material.latents.device
    picks = torch.randint(len(material.latents), (batch,), generator=generator, device=device)
    wordings = material.texts.wordings
    place = torch.randint(wordings.shape[1], (batch,), generator=generator, device=device)
    worded = torch.rand(batch, generator=generator, device=device) >= empty_share
    texts = wordings[picks, place] * worded
    shift = torch.rand(1, generator=generator, device=device)
    order = torch.randperm(batch, generator=generator, device=device)
    latents = material.latents[picks].float()
    return {
        "latents": latents,
        "noise": torch.randn(latents.shape, generator=generator, device=device),
        "u": (order + shift) / batch,
        **{name: table[texts].long() for name, table in material.texts.ids.items()},
    }


class DiffusionKind(Kind):
    """Epsilon prediction on the scaled_linear schedule, min-SNR weighted."""

    def noisy(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Latents with noise, and their timesteps (B,) int64."""
        t = (inputs["u"] * TRAIN_STEPS).long().clamp(max=TRAIN_STEPS - 1)
        kept = self._kept(t.device)[t][:, None, None, None]
        return kept.sqrt() * inputs["latents"] + (1 - kept).sqrt() * inputs["noise"], t

    def weighted(self, prediction: Tensor, inputs: Inputs, t: Tensor) -> Tensor:
        """Mean squared error against the noise."""
        kept = self._kept(t.device)[t]
        snr = kept / (1 - kept)
        error = (prediction.float() - inputs["noise"]).square().mean((1, 2, 3))
        return (error * snr.clamp(max=SNR_GAMMA) / snr).mean()

    def _kept(self, device: torch.device) -> Tensor:
        if self._alphas.device != device:
            self._alphas = self._alphas.to(device)
        return self._alphas

    @cached_property
    def _alphas(self) -> Tensor:
        return make_diffusion_scheduler().alphas_cumprod


class FlowKind(Kind):
    """Flow matching: x_t = (1 - t) x0 + t noise, the target is noise - x0.

    Times are logit-normal and shifted by f t / (1 + (f - 1) t), as in SD3 (Esser et al. 2024, sec. 3.1).
    """

    half: ClassVar[bool] = True
    shift: ClassVar[float]

    def noisy(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Latents with noise, and their times (B,) from 0 to 1."""
        normal = math.sqrt(2) * torch.erfinv((2 * inputs["u"] - 1).clamp(-0.9999, 0.9999))
        t = torch.sigmoid(normal)
        t = self.shift * t / (1 + (self.shift - 1) * t)
        wide = t[:, None, None, None]
        return (1 - wide) * inputs["latents"] + wide * inputs["noise"], t


def read_captions(file: Path) -> list[list[str]]:
    """The captions of each picture, from a file of JSON lines."""
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _ids(tokenizer: Any, texts: list[str]) -> "np.ndarray[Any, np.dtype[np.int16]]":
    """(texts, L): padded here, for a table of Python lists that long would take minutes."""
    length = tokenizer.model_max_length
    table = np.full((len(texts), length), tokenizer.pad_token_id, np.int16)
    for start in range(0, len(texts), TOKENIZED_AT_ONCE):
        part = texts[start : start + TOKENIZED_AT_ONCE]
        for row, ids in enumerate(tokenizer(part, truncation=True, max_length=length).input_ids, start):
            table[row, : len(ids)] = ids
    return table
