"""Maps that are the picture itself, or close to it."""

from PIL import Image, ImageFilter, ImageOps

BLUR = 16.0  # pixels at 1024 (standard deviation): shapes stay, texture goes


def same(picture: Image.Image) -> Image.Image:
    """The picture as it is."""
    return picture


def blur(picture: Image.Image) -> Image.Image:
    """Blurred in proportion to its shorter side."""
    return picture.filter(ImageFilter.GaussianBlur(BLUR * min(picture.size) / 1024))


def gray(picture: Image.Image) -> Image.Image:
    """Luminance (ITU-R 601) in all three channels."""
    return ImageOps.grayscale(picture).convert("RGB")
