"""The probe: figures that differ between checkpoints only by their weights; all else is fixed.

train      loss on pictures that are trained on. Single-step losses vary tenfold with the drawn timestep;
           this one can rank checkpoints, but falls also while pictures are learned by heart
held_out   the same loss on pictures that are never trained on, where there are any
prior      mean squared distance between the predictions with and without the adapter, for captions
           without the words that are taught: how far the base was moved where it should have stayed
"""

from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainers.captions import shown_caption
from trainers.data import Batch, BatchSource, Item
from trainers.loop import error
from trainers.objectives import Objective
from trainers.plan import Size, Slot, draw_seed
from trainers.priors import class_caption, taught_words
from trainers.recipe import Recipe
from trainers.recipe_fields import DataSection
from trainers.rundir import PROBES

if TYPE_CHECKING:
    from trainers.checkpoints import Learning
    from trainers.setup import Setting

ROWS = 8  # predictions of a figure; more where more pictures are held out
# What the base is asked with where captions have no word to leave out.
EVERYDAY = (
    "a photo of a dog", "a street in a city", "a bowl of fruit on a table", "a portrait of a woman",
    "a mountain and a lake", "a drawing of a house", "a red car", "a group of people",
)  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """What the probe found of the weights as they are now; see the module."""

    train: float
    held_out: float | None = None
    prior: float | None = None

    @property
    def judged(self) -> float:
        """The loss that checkpoints are ranked by; lower is better."""
        return self.train if self.held_out is None else self.held_out

    def named(self) -> dict[str, float]:
        """Those that there are, by their names in files."""
        return {PROBES[name]: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Probe:
    """Asks for the figures.

    Args:
        learning: Its running mean is what is judged.
        train: Scalar, the same for the same weights; so are the others.
        held_out: None = no picture is held out.
        prior: None = there is nothing to switch off.
    """

    learning: "Learning"
    train: Callable[[], Tensor]
    held_out: Callable[[], Tensor] | None = None
    prior: Callable[[], Tensor] | None = None

    def __call__(self) -> Figures:
        """The figures now. Waits for the device."""
        with self._as_saved():
            return Figures(
                float(self.train()),
                None if self.held_out is None else float(self.held_out()),
                None if self.prior is None else float(self.prior()),
            )

    def has_effect(self) -> bool:
        """Whether it makes any difference that the adapter is there."""
        with self._as_saved():
            with self.learning.trainables.disabled():
                without = float(self.train())
            return float(self.train()) != without

    @contextmanager
    def _as_saved(self) -> Generator[None]:
        with torch.no_grad(), self.learning.ema.applied(), self.learning.trainables.evaluating():
            yield


@dataclass(frozen=True)
class Asked:
    """One forward pass: a batch on the device with its noise and timesteps."""

    setting: "Setting"
    objective: Objective
    batch: Batch
    noise: Tensor  # (B, C, h, w)
    t: Tensor  # (B,)

    def loss(self) -> Tensor:
        """Mean over the batch, as in training."""
        with self.setting.accelerator.autocast():
            return error(self.setting.family, self.objective, self.batch, self.noise, self.t)

    def prediction(self) -> Tensor:
        """(B, C, h, w) fp32, what the denoiser answers."""
        family, x0 = self.setting.family, self.batch.latents
        noise, t = self.noise.to(x0), self.t.to(x0.device)
        x_t = self.objective.corrupt(x0, noise, t)
        with self.setting.accelerator.autocast():
            cond = family.conditioning(self.batch.cond)
            return family.predict(x_t, t, cond, self.batch.geometry).float()


class _Drift:
    """How far predictions are from the base's own; the base is asked once, it does not change."""

    def __init__(self, learning: "Learning", asked: Asked) -> None:
        self._learning, self._asked = learning, asked
        self._base: Tensor | None = None

    def __call__(self) -> Tensor:
        if self._base is None:
            with self._learning.trainables.disabled():
                self._base = self._asked.prediction()
        return (self._asked.prediction() - self._base).square().mean()


def make_probe(
    setting: "Setting",
    objective: Objective,
    learning: "Learning",
    source: BatchSource,
    held: Sequence[Item],
) -> Probe:
    """The probe of a run.

    Args:
        setting: The run.
        objective: What is asked.
        learning: What is judged.
        source: Batches; its caches also hold what is held out, and `prior_captions`.
        held: Pictures that are never trained on.
    """
    recipe, device = setting.recipe, setting.family.device
    seed = recipe.train.seed
    still = replace(source, data=_calm(recipe.data), prior=None, rank=0, world=1)
    positions = probe_items(source.items, seed)
    batch = still.load([Slot(position, 0) for position in positions], 0, 0)
    generator = torch.Generator().manual_seed(draw_seed(seed, "probe"))
    noise = objective.sample_noise(batch.latents.shape, generator)
    t = objective.probe_t(batch.latents.shape)
    trained = Asked(setting, objective, batch.to(device), noise, t)
    prior = None
    if captions := prior_captions(recipe, source.items):
        other = replace(batch, captions=captions, cond=source.conditioning(captions))
        prior = _Drift(learning, Asked(setting, objective, other.to(device), noise, t))
    spared = held_rows(setting, objective, still, held, batch.geometry[0].target)

    def held_loss() -> Tensor:
        rows = sum(len(asked.t) for asked in spared)
        return torch.stack([asked.loss() * (len(asked.t) / rows) for asked in spared]).sum()

    return Probe(learning, trained.loss, held_loss if spared else None, prior)


def held_rows(
    setting: "Setting", objective: Objective, still: BatchSource, held: Sequence[Item], near: Size
) -> list[Asked]:
    """Every held-out picture equally often, at the size nearest to `near` (height, width); a bucket a batch.

    Few pictures come several times, at other timesteps: a loss at one timestep a picture says little.
    """
    shown: dict[str, Item] = {}
    for item in sorted(held, key=lambda item: abs(_area(item.geometry.target) - _area(near))):
        shown.setdefault(item.source.pixel_hash, item)
    items = sorted(shown.values(), key=lambda item: item.index)
    rows = [position for _ in range(-(-ROWS // max(1, len(items)))) for position in range(len(items))]
    buckets: defaultdict[Size, list[int]] = defaultdict(list)
    for row, position in enumerate(rows):
        buckets[items[position].geometry.target].append(row)
    spared = replace(still, items=items)
    generator = torch.Generator().manual_seed(draw_seed(setting.recipe.train.seed, "held out"))
    found: list[Asked] = []
    chunks = [
        at[n : n + ROWS] for at in buckets.values() for n in range(0, len(at), ROWS)
    ]  # memory of a pass
    for at in chunks:
        batch = spared.load([Slot(rows[row], 0) for row in at], 0, 0)
        noise = objective.sample_noise(batch.latents.shape, generator)
        # Over all rows, so that the timesteps of small buckets are spread as well.
        t = objective.probe_t(torch.Size((len(rows), *batch.latents.shape[1:])))[at]
        found.append(Asked(setting, objective, batch.to(setting.family.device), noise, t))
    return found


def probe_items(items: Sequence[Item], seed: int) -> list[int]:
    """Positions of at most `ROWS` instances of their commonest bucket, spread over the data set."""
    targets = {index: item.geometry.target for index, item in enumerate(items) if not item.source.role}
    common = max(sorted(set(targets.values())), key=list(targets.values()).count)
    positions = [index for index, target in targets.items() if target == common]
    positions.sort(key=lambda index: draw_seed(seed, "probe", items[index].index))
    return sorted(positions[:ROWS])


def prior_captions(recipe: Recipe, items: Sequence[Item]) -> list[str]:
    """What the base is asked with, for each row of the probe: its caption without the words that are taught.

    Everyday captions stand in where no word can be left out. Empty where nothing is judged, or nothing can be
    switched off: a full fine-tune leaves no base, and new words alone leave it as it is.
    """
    if not recipe.checkpoints.keep_best or recipe.adapter.method == "full" or recipe.tokens.only:
        return []
    seed, data, taught = recipe.train.seed, _calm(recipe.data), taught_words(recipe)
    found: list[str] = []
    for row, position in enumerate(probe_items(items, seed)):
        shown = shown_caption(items[position], 0, data=data, seed=seed, epoch=0)
        caption = class_caption(shown, taught, recipe.preservation.class_prompt)
        found.append(EVERYDAY[row % len(EVERYDAY)] if caption == shown else caption)
    return found


def _calm(data: DataSection) -> DataSection:
    """Captions and pictures as they are, nothing dropped and nothing mirrored."""
    return data.model_copy(update={"caption_dropout": 0.0, "flip": False})


def _area(size: Size) -> int:
    return size[0] * size[1]
