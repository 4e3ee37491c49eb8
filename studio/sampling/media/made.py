"""What is made beside pictures, between the pipeline and the file. No torch."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Film:
    """Frames (F, H, W, 3) as bytes, and how many a second."""

    frames: np.ndarray
    fps: float


@dataclass(frozen=True)
class Sound:
    """Samples (channels, N), -1 to 1, and how many a second (Hz)."""

    samples: np.ndarray
    rate: int


@dataclass(frozen=True)
class Mesh:
    """Triangles: points (N, 3), their colours (N, 3) as bytes, faces (M, 3) as numbers of points."""

    points: np.ndarray
    colours: np.ndarray
    faces: np.ndarray


@dataclass(frozen=True)
class Thing:
    """Seen from all sides, and its surface where one was asked for."""

    film: Film
    mesh: Mesh | None


Made = Film | Sound | Thing
