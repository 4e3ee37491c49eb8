"""What the sampler says while it draws."""

from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from PIL import Image as Pixels
from torch import Tensor

from studio.sampling.pixels import to_picture
from studio.sampling.preview import LatentPreview

PREVIEW_EVERY = 0.5  # seconds


@dataclass(frozen=True)
class Progress:
    """Where a request is. `picture` counts from 1; `preview` shows it as it is so far."""

    phase: str  # "loading", "drawing"
    step: int = 0
    steps: int = 0
    picture: int = 0
    pictures: int = 0
    preview: Pixels.Image | None = None


@dataclass
class Watch:
    """Tells about the steps of one batch.

    Args:
        say: Takes the progress.
        preview: Of the base that draws.
        picture: First of the batch, from 1.
        pictures: How many the request wants.
        steps: Steps as the person counts them, of all passes together.
    """

    say: Callable[[Progress], None]
    preview: LatentPreview | None
    picture: int
    pictures: int
    steps: int
    _previewed_at: float = field(default_factory=monotonic)

    def seen(self, step: int, latents: Tensor) -> None:
        """`step` of `steps` are done; `latents` (B, C, h, w) is what came of them."""
        picture = None
        if self.preview is not None and monotonic() - self._previewed_at > PREVIEW_EVERY:
            picture = to_picture(self.preview.rgb(latents[:1]))
            self._previewed_at = monotonic()
        self.say(Progress("drawing", step, self.steps, self.picture, self.pictures, preview=picture))
