"""Pictures seen in every way there is: pixels, the base's latents, an encoder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from registry.errors import BadInput, Damaged
from studio.evidence.encoders import Encoder
from studio.evidence.features import Floats, View, cut, encoder_view, latent_view, pixel_view

CHUNK = 16  # pictures at once
SMALLEST = 0.05  # of the median spread of its group: a statistic that hardly varies must not decide alone
LEAST = 1e-9
NAMES = {"latents": "the base's autoencoder", "encoder": "the encoder"}

Say = Callable[[int, int], None]


@dataclass
class Eyes:
    """What looks at pictures.

    Args:
        size: (width, height) that every picture is cut to.
        autoencoder: Of the base; None = pixels alone.
        encoder: None = without.
        say: Takes (pictures done, of how many).
        total: How many there will be.
    """

    size: tuple[int, int]
    autoencoder: Any | None
    encoder: Encoder | None
    say: Say | None = None
    total: int = 0
    done: int = 0

    def see(self, pictures: Sequence[Image.Image]) -> list[View]:
        """The pictures in each view, always in the same order of views."""
        parts: list[list[View]] = []
        for start in range(0, len(pictures), CHUNK):
            small = cut(pictures[start : start + CHUNK], self.size)
            views = [pixel_view(small)]
            if self.autoencoder is not None:
                views.append(latent_view(self.autoencoder.encode(small, self.size).numpy()))
            if self.encoder is not None:
                views.append(encoder_view(self.encoder.images(small)))
            parts.append(views)
            self.done += len(small)
            if self.say is not None:
                self.say(self.done, self.total)
        views = [View.joined(list(same)) for same in zip(*parts, strict=True)]
        for view in views:
            _require_finite(view)
        return views

    def through(self, pictures: Sequence[Image.Image]) -> list[Image.Image]:
        """The pictures as the base could draw them at best: cut, and through its autoencoder."""
        small = cut(pictures, self.size)
        if self.autoencoder is None:
            return small
        back: list[Image.Image] = []
        for start in range(0, len(small), CHUNK):
            latents = self.autoencoder.encode(small[start : start + CHUNK], self.size)
            back += self.autoencoder.decode(latents)
        return back


def _require_finite(view: View) -> None:
    """Pixels are numbers always; a model with a damaged weight, or in 16 bits, may give what is none.

    Raises:
        Damaged: a value is not finite. It would spoil every figure, and JSON cannot say it.
    """
    if not all(np.isfinite(part).all() for part in (view.look, view.layout, *view.scene)):
        name, do = NAMES.get(view.name, view.name), "check its files, or measure without it"
        raise Damaged(name, "gives values that are not finite", do)


def mirrored(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Left and right exchanged."""
    return [ImageOps.mirror(picture) for picture in pictures]


def open_autoencoder(base: Path | None) -> Any | None:
    """The autoencoder in a diffusers folder; None without a base.

    Raises:
        BadInput: the folder is gone, has none, or one that cannot be loaded.
    """
    if base is None:
        return None
    if not (base / "vae" / "config.json").is_file():
        if not base.is_dir():
            raise BadInput(str(base), "the base is not there any more", "bring it back, then ask again")
        raise BadInput(str(base), "holds no autoencoder (vae/config.json)", "give a diffusers folder")
    from studio.compare.floor import Autoencoder

    try:
        return Autoencoder(base)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200].rstrip(".")
        raise BadInput(str(base / "vae"), f"cannot be loaded ({said})", "bring its files back") from error


@dataclass(frozen=True)
class Units:
    """What the values of a view are divided by, from the base's and the training pictures alone.

    So they are the same whatever is compared, and no unit dominates.

    Args:
        look: (D,) a distance of 1 is the usual spread of a statistic, each group counting the same.
        layout: (channels,) spread of a channel.
        common: (places, channels) what all have in common, of an encoder's rows; 0 for the others.
        scene: Of each description, the spread of its values.
    """

    look: Floats
    layout: Floats
    common: Floats
    scene: tuple[float, ...]

    @classmethod
    def of(cls, base: View, training: View) -> "Units":
        """From both sets of pictures."""
        variance = (base.look.var(0) + training.look.var(0)) / 2
        look = np.empty(len(variance))
        start = 0
        for size in base.groups:
            part = np.sqrt(variance[start : start + size])
            part = np.maximum(part, max(SMALLEST * float(np.median(part)), LEAST))
            look[start : start + size] = part * np.sqrt(size * len(base.groups))
            start += size
        both = np.concatenate([base.layout, training.layout])
        # An encoder's rows all point about the same way; what differs is what tells pictures apart.
        common = both.mean(0) if base.name == "encoder" else np.zeros(both.shape[1:])
        rest = both - common
        parts = [np.concatenate(pair) for pair in zip(base.scene, training.scene, strict=True)]
        scene = tuple(max(float(np.sqrt(part.var(0).mean())), LEAST) for part in parts)
        return cls(look, np.maximum(rest.std((0, 1)), LEAST), common, scene)

    def apply(self, view: View) -> View:
        """The view in these units."""
        layout = (view.layout - self.common) / self.layout
        scene = tuple(part / unit for part, unit in zip(view.scene, self.scene, strict=True))
        return replace(view, look=view.look / self.look, layout=layout, scene=scene)
