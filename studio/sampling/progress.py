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
    _done: int = 0  # steps of the passes before
    _previewed_at: float = field(default_factory=monotonic)

    def part(self, steps: int, evaluations: int) -> Callable[[int, Tensor], None]:
        """What the next pass tells: of its `evaluations` so many are done, with latents (B, C, h, w).

        Args:
            steps: Of the pass.
            evaluations: How often its sampler asks the denoiser; some do so twice a step.
        """
        before = self._done
        self._done += steps

        def seen(number: int, latents: Tensor) -> None:
            self._seen(before + number * steps // max(1, evaluations), latents)

        return seen

    def _seen(self, step: int, latents: Tensor) -> None:
        picture = None
        if self.preview is not None and monotonic() - self._previewed_at > PREVIEW_EVERY:
            picture = to_picture(self.preview.rgb(latents[:1]))
            self._previewed_at = monotonic()
        self.say(Progress("drawing", step, self.steps, self.picture, self.pictures, preview=picture))
