"""What is drawn on: a picture and a mask brought to the size of the drawing, and the way back.

No torch here. White of a mask is drawn anew. Without `only_masked` the picture is fitted to the asked size:
scaled until it covers it, then cut in the middle. With `only_masked` it keeps its own size; a crop around
the mask, in the shape of the asked size, is drawn at that size and put back.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps

from registry.errors import BadInput
from studio.sampling.request import SampleRequest
from studio.sampling.task import SampleTask

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
HALF = 128  # a mask counts from here on
FILL_RADII = (64, 32, 16, 8, 4, 2)  # pixels, widest first: near colours count most


@dataclass(frozen=True)
class Canvas:
    """A picture to start from, and where its drawing goes.

    Args:
        picture: RGB, at the size of the drawing.
        mask: Black and white, of that size; None = all is drawn anew.
        whole: The picture that the drawing becomes part of.
        soft: Mask of `whole` with its blurred edge; None = nothing of `whole` stays.
        box: Place of the drawing in `whole`.
    """

    picture: Image.Image
    mask: Image.Image | None
    whole: Image.Image
    soft: Image.Image | None
    box: Box

    def finish(self, drawn: Image.Image) -> Image.Image:
        """Put a drawing where it belongs; pixels where the soft mask is black stay as they were, exactly."""
        if self.soft is None:
            return drawn
        size = (self.box[2] - self.box[0], self.box[3] - self.box[1])
        if drawn.size != size:
            drawn = drawn.resize(size, Image.Resampling.LANCZOS)
        placed = self.whole.copy()
        placed.paste(drawn, self.box[:2])
        return Image.composite(placed, self.whole, self.soft)


def canvas_of(task: SampleTask, step: int) -> Canvas | None:
    """What a task draws on; None when it starts from noise. An upscaling's sides are multiples of `step`.

    Raises:
        BadInput: a file of it is gone, or the mask is all black.
    """
    request = task.request
    if not request.image:
        return None
    image = task.file(request.image)
    if request.upscale is None:
        return make_canvas(request, image, task.file(request.mask) if request.mask else None)
    picture, scale = _opened(image, "RGB"), request.upscale.scale
    width, height = (max(step, round(side * scale / step) * step) for side in picture.size)
    larger = picture.resize((width, height), Image.Resampling.LANCZOS)
    return Canvas(larger, None, larger, None, (0, 0, width, height))


def make_canvas(request: SampleRequest, image: Path, mask: Path | None) -> Canvas:
    """The canvas of a request.

    Args:
        request: Size, mask and outpaint options.
        image: The picture's file; it was decoded safely before, see `studio.sampling.files`.
        mask: The mask's file.

    Raises:
        BadInput: the mask is all black.
    """
    picture = _opened(image, "RGB")
    white = None
    if mask is not None:
        white = _opened(mask, "L").resize(picture.size, Image.Resampling.BILINEAR)
        white = white.point([0] * HALF + [255] * HALF)
    if any(request.outpaint):
        picture, white = extended(picture, white, request.outpaint)
    size = (request.width, request.height)
    if white is None:
        fitted = fit(picture, size)
        return Canvas(fitted, None, fitted, None, (0, 0, *size))
    if white.getbbox() is None:
        raise BadInput("the mask", "is all black: nothing would be drawn", "paint white what is to change")
    if not request.only_masked:
        picture, white = fit(picture, size), fit(white, size, Image.Resampling.NEAREST)
        if white.getbbox() is None:
            wrong = "has nothing white left at this size"
            raise BadInput("the mask", wrong, "change the size, or use only_masked")
        box = (0, 0, *size)
        soft = blurred(white, request.mask_blur) if request.keep_unmasked else None
    else:
        box = crop_box(white, size, request.mask_padding)
        soft = blurred(white, request.mask_blur)
    whole = picture
    if request.mask_content == "fill":
        picture = filled(picture, white)
    return Canvas(
        picture.crop(box).resize(size, Image.Resampling.LANCZOS),
        white.crop(box).resize(size, Image.Resampling.NEAREST),
        whole,
        soft,
        box,
    )


def fit(
    picture: Image.Image,
    size: tuple[int, int],
    resampling: Image.Resampling = Image.Resampling.LANCZOS,
) -> Image.Image:
    """Scaled until it covers `size` (width, height), then cut in the middle; of that size: as it is."""
    return picture if picture.size == size else ImageOps.fit(picture, size, resampling)


def extended(
    picture: Image.Image, mask: Image.Image | None, sides: tuple[int, int, int, int]
) -> tuple[Image.Image, Image.Image]:
    """Wider by (left, top, right, bottom) pixels: the edge goes on outwards, and is to be drawn anew."""
    left, top, right, bottom = sides
    pixels = np.pad(np.asarray(picture), ((top, bottom), (left, right), (0, 0)), mode="edge")
    wider = Image.new("L", (picture.width + left + right, picture.height + top + bottom), 255)
    wider.paste(mask or Image.new("L", picture.size, 0), (left, top))
    return Image.fromarray(pixels), wider


def crop_box(mask: Image.Image, size: tuple[int, int], padding: int) -> Box:
    """The part of a picture to draw: around all white, `padding` pixels wider, in the shape of `size`.

    Where the picture ends before the shape is reached, the crop is of another shape and is stretched.
    """
    found = mask.getbbox()
    assert found is not None
    left, top, right, bottom = found
    left, top = max(0, left - padding), max(0, top - padding)
    right, bottom = min(mask.width, right + padding), min(mask.height, bottom + padding)
    shape = size[0] / size[1]
    width = max(right - left, round((bottom - top) * shape))
    height = max(bottom - top, round((right - left) / shape))
    left, right = _widened(left, right, min(width, mask.width), mask.width)
    top, bottom = _widened(top, bottom, min(height, mask.height), mask.height)
    return left, top, right, bottom


def blurred(mask: Image.Image, radius: int) -> Image.Image:
    """The mask with a soft edge of about `radius` pixels to both sides (standard deviation radius / 2)."""
    return mask.filter(ImageFilter.GaussianBlur(radius / 2)) if radius else mask


def filled(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """White parts filled with the colours around them: averages over what is black, ever closer."""
    known = ImageChops.invert(mask)
    weight = np.asarray(known, dtype=np.float32)[..., None] / 255
    pixels = np.asarray(picture, dtype=np.float32)
    result = np.broadcast_to(_mean(pixels, weight), pixels.shape).copy()
    for radius in FILL_RADII:
        near = _blur(weight, radius)
        average = _blur(pixels * weight, radius) / np.maximum(near, 1e-6)
        share = np.clip(near * 8, 0, 1)  # full where an eighth of the neighbourhood is known
        result += share * (average - result)
    result = weight * pixels + (1 - weight) * result
    return Image.fromarray(result.round().clip(0, 255).astype(np.uint8))


def _mean(pixels: Any, weight: Any) -> Any:
    total = float(weight.sum())
    return (pixels * weight).sum((0, 1)) / total if total else np.full(3, 127.5, dtype=np.float32)


def _blur(values: Any, radius: float) -> Any:
    """(H, W, C) floats, blurred channel by channel."""
    blur = ImageFilter.BoxBlur(radius)
    # Pillow blurs bytes only; two bytes a value keep enough of it.
    layers: list[Any] = []
    for channel in np.moveaxis(values, -1, 0):
        top = max(float(channel.max()), 1e-6)
        scaled = (channel / top * 65535).astype(np.uint16)
        high = np.asarray(Image.fromarray((scaled >> 8).astype(np.uint8)).filter(blur), dtype=np.float32)
        low = np.asarray(Image.fromarray((scaled & 255).astype(np.uint8)).filter(blur), dtype=np.float32)
        layers.append((high * 256 + low) / 65535 * top)
    return np.stack(layers, axis=-1)


def _widened(start: int, end: int, wanted: int, limit: int) -> tuple[int, int]:
    """An interval of `wanted` within 0..limit around the given one."""
    start -= (wanted - (end - start)) // 2
    start = min(max(0, start), limit - wanted)
    return start, start + wanted


def _opened(path: Path, mode: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert(mode)
    except OSError as error:
        raise BadInput(str(path), "is no longer there or is damaged", "ask for the picture again") from error
