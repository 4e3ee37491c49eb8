"""The controls of one request: networks loaded, pictures cut to what a pass draws, maps made once."""

import sys
from collections.abc import Callable, Sequence

from PIL import Image

from registry.errors import BadInput
from studio.sampling.canvas import Canvas, fit
from studio.sampling.control.kinds import HOLE
from studio.sampling.control.maps import make_map
from studio.sampling.control.nets import Net, Nets
from studio.sampling.control.steering import Control, Steer
from studio.sampling.drawing import Part
from studio.sampling.painting import Change
from studio.sampling.request_control import ControlChoice
from studio.sampling.task import SampleTask
from trainers.families.base import Family
from trainers.guidance import Guided


class Controls:
    """What steers a request; `changes` is asked for each of its passes.

    Args:
        task: The request with its files.
        family: Of the base that draws.
        nets: Loads the networks.
        canvas: The picture to start from; its mask is the hole of inpaint maps.
        keep: Takes the first map of each control: index, map.

    Raises:
        BadInput: a network cannot be loaded, a hole without a mask.
    """

    def __init__(
        self,
        task: SampleTask,
        family: Family,
        nets: Nets,
        canvas: Canvas | None,
        keep: Callable[[int, Image.Image], None],
    ) -> None:
        self._device, self._canvas, self._keep = family.device, canvas, keep
        self._used: list[tuple[ControlChoice, Net, Image.Image]] = []
        for choice, control in zip(task.request.controls, task.controls, strict=True):
            if choice.kind == HOLE and (canvas is None or canvas.mask is None):
                raise BadInput("control inpaint", "needs a mask", "give image and mask, or another kind")
            with Image.open(task.file(choice.image)) as picture:  # decoded safely when it was taken in
                self._used.append((choice, nets.take(control, family), picture.convert("RGB")))
        nets.trim(len(self._used))
        self._maps: dict[tuple[int, tuple[int, int], Part], Image.Image] = {}

    def changes(self, guided: Guided, part: Part) -> Sequence[Change]:
        """What acts on one pass, which draws `part` of the whole at `guided.size`."""
        if not self._used:
            return ()
        steers = [
            Steer(
                net,
                self._map(index, guided.size, part),
                self._hole(choice, guided.size),
                choice.weight,
                choice.start,
                choice.end,
                choice.guess,
            )
            for index, (choice, net, _) in enumerate(self._used)
        ]
        return [Control(steers)]

    def _map(self, index: int, size: tuple[int, int], part: Part) -> Image.Image:
        key = (index, size, part)
        if key not in self._maps:
            choice, _, picture = self._used[index]
            shown = share(picture, size, part)
            made = shown
            if choice.preprocess:
                made = make_map(choice.kind, shown, model=choice.preprocessor, device=self._device)
            if not any(known == index for known, *_ in self._maps):
                self._keep(index, made)
            self._maps[key] = made
        return self._maps[key]

    def _hole(self, choice: ControlChoice, size: tuple[int, int]) -> Image.Image | None:
        if choice.kind != HOLE:
            return None
        assert self._canvas is not None
        assert self._canvas.mask is not None
        return self._canvas.mask.resize((size[1], size[0]), Image.Resampling.NEAREST)


def share(picture: Image.Image, size: tuple[int, int], part: Part) -> Image.Image:
    """The part of a picture that lies under the part that is drawn, at `size` (height, width).

    The picture covers the whole drawing and is cut in the middle, as a picture to start from is.
    """
    left, top, right, bottom = part
    whole = (round(size[1] / (right - left)), round(size[0] / (bottom - top)))
    fitted = fit(picture, whole)
    box = tuple(round(share * side) for share, side in zip(part, (*whole, *whole), strict=True))
    if box == (0, 0, *whole):
        return fitted
    return fitted.crop((box[0], box[1], box[2], box[3])).resize((size[1], size[0]), Image.Resampling.LANCZOS)


def forget_models() -> None:
    """Give back the memory of models that read depth and pose."""
    if (reading := sys.modules.get("studio.sampling.control.reading")) is not None:
        reading.forget()
