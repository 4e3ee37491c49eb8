"""Generated pictures, as pixels and as files."""

import hashlib
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def pixels(seed: int = 0, width: int = 40, height: int = 32, channels: int = 3) -> Pixels:
    """Random blocks of 8 x 8: neither flat nor noise, so that every codec has something to do."""
    rng = np.random.default_rng(seed)
    shape = (-(-height // 8), -(-width // 8), channels)
    blocks = rng.integers(0, 256, shape, dtype=np.uint8)
    return np.kron(blocks, np.ones((8, 8, 1), np.uint8))[:height, :width]


def encoded(content: Pixels | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """`content` as a file."""
    buffer = BytesIO()
    image = content if isinstance(content, Image.Image) else Image.fromarray(content)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> Pixels:
    """What a plain reader sees in a file."""
    with Image.open(BytesIO(data)) as image:
        return np.asarray(image)


def hash_of(content: Pixels) -> str:
    """The pixel hash of RGB pixels, written down a second time."""
    height, width, _ = content.shape
    return hashlib.sha256(f"RGB {width}x{height}\n".encode() + content.tobytes()).hexdigest()
