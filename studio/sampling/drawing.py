"""One batch of a request, from noise or a picture to finished pictures, through all its passes."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from studio.sampling.canvas import Box, Canvas, fit
from studio.sampling.inpainting import Inpaint, everything
from studio.sampling.painting import Change, Pass, paint
from studio.sampling.pixels import mask_tensor, to_picture, to_tensor
from studio.sampling.preview import LatentPreview
from studio.sampling.progress import Progress, Watch
from studio.sampling.prompts.request_texts import RequestTexts
from studio.sampling.refining import after, until
from studio.sampling.request import SIDE, SampleRequest
from studio.sampling.schedulers import make_scheduler
from studio.sampling.stack import AdapterStack, FollowSchedules
from studio.sampling.starts import first_noise, from_latents, from_noise, generators, latents_of, new_noise
from studio.sampling.steps import first_step
from studio.sampling.tiles import Quilt, tiles
from trainers.families.base import Family
from trainers.guidance import Guided

Part = tuple[float, float, float, float]  # left, top, right, bottom of what is drawn, 0 to 1 of the whole
WHOLE: Part = (0.0, 0.0, 1.0, 1.0)
ChangesOf = Callable[[Guided, Part], Sequence[Change]]  # for one pass; `Guided.size` is what it draws


@dataclass(frozen=True)
class Ready:
    """A loaded base with the prompts of a request."""

    family: Family
    scheduler_config: Mapping[str, Any]
    texts: RequestTexts
    stack: AdapterStack
    preview: LatentPreview | None = None


def no_changes(_guided: Guided, _part: Part) -> Sequence[Change]:
    """Of a request without any."""
    return ()


@dataclass(frozen=True)
class Order:
    """A request with everything that its batches share.

    Args:
        request: What is asked for.
        base: Draws.
        refiner: Takes over towards the end.
        canvas: The picture to start from; of an upscaling, already enlarged.
        changes: What acts on each pass beside masks: ControlNets, schedules of adapters.
        say: Takes progress.
        cancelled: Asked before every step.
    """

    request: SampleRequest
    base: Ready
    refiner: Ready | None = None
    canvas: Canvas | None = None
    changes: ChangesOf = no_changes
    say: Callable[[Progress], None] = lambda _: None
    cancelled: Callable[[], bool] = lambda: False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the first pass, or of a tile."""
        return self.request.height, self.request.width

    def boxes(self) -> list[Box]:
        """Tiles of an upscaling."""
        upscale, canvas = self.request.upscale, self.canvas
        assert upscale is not None
        assert canvas is not None
        tile = (self.request.width, self.request.height)
        return tiles(canvas.picture.size, tile, upscale.overlap, self.base.family.side_multiple)

    @property
    def left(self) -> int:
        """Steps of the first pass, or of each tile."""
        steps = self.request.steps
        if self.canvas is None:
            return steps
        return steps - first_step(steps, self.request.strength, flow=self._flow)

    @property
    def more(self) -> int:
        """Steps of the second pass."""
        hires = self.request.hires
        if hires is None:
            return 0
        steps = hires.steps or self.request.steps
        return steps - first_step(steps, hires.strength, flow=self._flow)

    def steps(self) -> int:
        """Of all passes of one batch together."""
        return self.left * len(self.boxes()) if self.request.upscale else self.left + self.more

    @property
    def _flow(self) -> bool:
        return str(self.base.scheduler_config["_class_name"]).startswith("FlowMatch")


class Drawing:
    """One batch.

    Args:
        order: The request.
        indices: Which of its pictures.
    """

    def __init__(self, order: Order, indices: list[int]) -> None:
        self._order, self._indices = order, indices
        self._request, self._family = order.request, order.base.family
        first = indices[0] + 1
        self._watch = Watch(order.say, order.base.preview, first, order.request.count, order.steps())

    def pictures(self) -> list[Image.Image]:
        """The finished pictures, in the order of the indices."""
        if self._request.upscale:
            return self._upscaled()
        latents = self._run(self._begun(), self._order.left, refiner=self._order.refiner)
        if self._request.hires:
            latents = self._larger(latents)
        drawn = self._developed(latents)
        canvas = self._order.canvas
        return drawn if canvas is None or self._request.hires else [canvas.finish(one) for one in drawn]

    # -- the first pass

    def _begun(self) -> Pass:
        request, canvas, family = self._request, self._order.canvas, self._family
        guided = self._guided(self._order.size, self._order.left)
        sources = generators(request, self._indices)
        changes = list(self._order.changes(guided, WHOLE if canvas is None else _part(canvas)))

        def noise() -> Tensor:
            return first_noise(family, request, self._indices, self._order.size, sources)

        if canvas is None:
            start = noise()
            guided = everything(guided, sources) if family.inpaints else guided
            return from_noise(guided, self._scheduler(), request.steps, start, sources, changes)
        pixels = to_tensor(canvas.picture)
        if canvas.mask is None:
            latents, start = latents_of(family, pixels, sources), noise()
            return self._from(guided, request.steps, request.strength, latents, start, sources, changes)
        what = Inpaint(pixels, mask_tensor(canvas.mask), request.mask_content, request.strength)
        return what.prepare(guided, self._scheduler(), request.steps, noise, sources, changes)

    def _from(
        self,
        guided: Guided,
        steps: int,
        strength: float,
        latents: Tensor,
        noise: Tensor,
        sources: list[torch.Generator],
        changes: Sequence[Change],
    ) -> Pass:
        """Image to image."""
        guided = everything(guided, sources) if self._family.inpaints else guided
        return from_latents(guided, self._scheduler(), steps, strength, latents, noise, sources, changes)

    # -- more passes

    def _larger(self, latents: Tensor) -> Tensor:
        """The second pass, from the first one's latents (B, C, h, w), at the larger size.

        Its noise is that of a request of its own with the same seed.
        """
        hires, request, family = self._request.hires, self._request, self._family
        assert hires is not None
        size = _scaled(self._order.size, hires.scale, math.lcm(family.side_multiple, SIDE))
        sources = generators(request, self._indices)
        if hires.upscaler == "latent":
            cells = (size[0] // family.latent_factor, size[1] // family.latent_factor)
            larger = F.interpolate(latents.float(), size=cells, mode="bilinear")
        else:
            fitted = [fit(one, (size[1], size[0])) for one in self._developed(latents)]
            rows = zip(fitted, sources, strict=True)
            larger = torch.cat([latents_of(family, to_tensor(one), [source]) for one, source in rows])
        noise = new_noise(family, size, sources)
        guided = self._guided(size, self._order.more)
        changes = self._order.changes(guided, WHOLE)
        steps = hires.steps or request.steps
        work = self._from(guided, steps, hires.strength, larger, noise, sources, changes)
        return self._run(work, self._order.more)

    def _upscaled(self) -> list[Image.Image]:
        """Each tile through image-to-image; all see parts of one noise, so that their overlaps agree."""
        request, family, canvas = self._request, self._family, self._order.canvas
        assert request.upscale is not None
        assert canvas is not None
        whole, sources = canvas.picture, generators(request, self._indices)
        size = (whole.height, whole.width)
        of_vae, noise = new_noise(family, size, sources), new_noise(family, size, sources)
        quilts = [Quilt(whole.size, request.upscale.overlap) for _ in self._indices]
        for box in self._order.boxes():
            guided = self._guided((box[3] - box[1], box[2] - box[0]), self._order.left)
            mean, deviation = family.encode_image(to_tensor(whole.crop(box)))
            cells = _cells(box, family.latent_factor)
            latents = mean + deviation * of_vae[cells]
            changes = self._order.changes(guided, _share(box, whole.size))
            work = self._from(
                guided, request.steps, request.strength, latents, noise[cells], sources, changes
            )
            for quilt, drawn in zip(quilts, self._developed(self._run(work, self._order.left)), strict=True):
                quilt.lay(drawn, box)
        return [quilt.picture() for quilt in quilts]

    # -- common to all

    def _run(self, work: Pass, steps: int, *, refiner: Ready | None = None) -> Tensor:
        """A pass of so many steps; with a refiner, its end by that."""
        work.changes = [*work.changes, FollowSchedules(self._order.base.stack, len(work.timesteps))]
        options: dict[str, Any] = {"cancelled": self._order.cancelled}
        if refiner is None:
            return paint(work, seen=self._watch.part(steps, len(work.timesteps)), **options)
        at, request = self._request.refiner_at, self._request
        first = until(work, at)
        begun = len(first.timesteps) // getattr(work.scheduler, "order", 1)
        guided = replace(self._guided(work.guided.size, steps, refiner, begun), beside=None)
        scheduler = self._scheduler_of(refiner)
        rest = after(work, at, guided, scheduler, request.steps, work.latents)
        done = len(first.timesteps)
        seen = self._watch.part(steps, done + len(rest.timesteps))
        rest.latents = paint(first, seen=seen, **options)
        return paint(rest, seen=lambda number, x: seen(done + number, x), **options)

    def _guided(
        self, size: tuple[int, int], steps: int, ready: Ready | None = None, begun: int = 0
    ) -> Guided:
        """Asks with the prompts of a pass of so many steps, of which another base has done `begun`."""
        request, ready = self._request, ready or self._order.base
        cond, negative = ready.texts.of(self._indices[0], steps)
        return Guided(
            ready.family,
            cond.after(begun),
            negative.after(begun),
            request.cfg,
            size,
            rescale=request.guidance_rescale,
            true_scale=request.true_cfg,
        )

    def _scheduler(self) -> Any:
        """A fresh one: they keep state."""
        return self._scheduler_of(self._order.base)

    def _scheduler_of(self, ready: Ready) -> Any:
        request = self._request
        seeds = [(request.seed + index) % 2**32 for index in self._indices]
        return make_scheduler(
            request.scheduler, ready.scheduler_config, family=ready.family.name, seeds=seeds
        )

    def _developed(self, latents: Tensor) -> list[Image.Image]:
        """(B, C, h, w) -> pictures; one by one, which takes the least memory."""
        rows = range(len(latents))
        return [to_picture(self._family.decode_image(latents[row : row + 1])) for row in rows]


def _scaled(size: tuple[int, int], scale: float, step: int) -> tuple[int, int]:
    """Both sides times `scale`, to the nearest multiple of `step`."""
    height, width = (max(step, round(side * scale / step) * step) for side in size)
    return height, width


def _cells(box: Box, factor: int) -> tuple[Any, ...]:
    """Index of a box in latents (B, C, h, w)."""
    left, top, right, bottom = (side // factor for side in box)
    return (..., slice(top, bottom), slice(left, right))


def _part(canvas: Canvas) -> Part:
    return _share(canvas.box, canvas.whole.size)


def _share(box: Box, size: tuple[int, int]) -> Part:
    width, height = size
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height
