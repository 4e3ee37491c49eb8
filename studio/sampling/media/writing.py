"""Files of videos, sounds and things, each with the JSON that makes it again. No torch.

| what | file | where our JSON is |
|---|---|---|
| video, turntable | animated WebP | EXIF, as in pictures |
| sound | WAV of 16 bit | chunk LIST INFO, comment (ICMT) |
| mesh | PLY, binary | a comment of its header |

WebP and not MP4: Pillow writes it, every browser plays it in place of a picture, it loses nothing at quality
100; an encoder of MP4 would be a large part of its own.
"""

import json
import struct
import wave
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from registry.files import atomic_path, atomic_write
from studio.sampling.media.kinds import KINDS, MEDIA, SOUND, THING, VIDEO
from studio.sampling.media.made import Film, Made, Mesh, Sound, Thing
from studio.sampling.metadata.said import OWN
from studio.sampling.metadata.writing import LOSSLESS, exif_of, own_note

Account = Mapping[str, Any]
_FULL = 32767  # of 16 bit


def write_made(made: Made, folder: Path, index: int, own: Account) -> str:
    """Write number `index` of a sample into its folder, atomically; returns the name of its main file.

    Args:
        made: What came out.
        folder: Of the sample.
        index: Which of the request.
        own: What makes it again, see `metadata.writing.account`.
    """
    request = own["request"]
    medium = KINDS[request["kind"]].medium
    path = folder / f"{index:03d}{MEDIA[medium].suffix}"
    WRITERS[medium](made, path, own)
    return path.name


def _film(made: Made, path: Path, own: Account) -> None:
    assert isinstance(made, Film)
    quality = int(own["request"]["quality"])
    frames = [Image.fromarray(frame) for frame in made.frames]
    with atomic_path(path) as temporary:
        frames[0].save(
            temporary,
            format="webp",
            save_all=True,
            append_images=frames[1:],
            duration=_durations(len(frames), made.fps),
            loop=0,
            lossless=quality == LOSSLESS,
            quality=quality,
            exif=exif_of(own_note(own)),
        )


def _durations(count: int, fps: float) -> list[int]:
    """Milliseconds of each frame; rounding does not add up."""
    ends = [round(1000 * (index + 1) / fps) for index in range(count)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _sound(made: Made, path: Path, own: Account) -> None:
    assert isinstance(made, Sound)
    samples = (made.samples.clip(-1, 1) * _FULL).round().astype("<i2")
    buffer = BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(len(samples))
        file.setsampwidth(2)
        file.setframerate(made.rate)
        file.writeframes(samples.T.tobytes())
    plain = buffer.getvalue() + _info(own)
    atomic_write(path, plain[:4] + struct.pack("<I", len(plain) - 8) + plain[8:])


def _info(own: Account) -> bytes:
    """A chunk LIST INFO: the program, and our JSON behind its name."""
    request = own["request"]
    texts = {
        b"ISFT": str(own["studio"]),
        b"INAM": str(request["prompt"])[:200].replace("\0", " "),
        b"ICMT": f"{OWN} {json.dumps(own)}",  # ASCII
    }
    body = b"INFO" + b"".join(
        _chunk(name, text.encode("utf-8", "replace") + b"\0") for name, text in texts.items()
    )
    return _chunk(b"LIST", body)


def _chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def _thing(made: Made, path: Path, own: Account) -> None:
    """The mesh first: what lies beside the main file is there when that is."""
    assert isinstance(made, Thing)
    if made.mesh is not None:
        atomic_write(path.with_suffix(MEDIA[THING].beside[0]), _ply(made.mesh, own))
    _film(made.film, path, own)


def _ply(mesh: Mesh, own: Account) -> bytes:
    """Binary PLY: points with colours, triangles."""
    header = "\n".join(
        (
            "ply",
            "format binary_little_endian 1.0",
            f"comment {OWN} {json.dumps(own)}",
            f"element vertex {len(mesh.points)}",
            *(f"property float {axis}" for axis in "xyz"),
            *(f"property uchar {colour}" for colour in ("red", "green", "blue")),
            f"element face {len(mesh.faces)}",
            "property list uchar int vertex_indices",
            "end_header\n",
        )
    )
    points = np.empty(len(mesh.points), [("place", "<f4", 3), ("colour", "u1", 3)])
    points["place"], points["colour"] = mesh.points, mesh.colours
    faces = np.empty(len(mesh.faces), [("count", "u1"), ("points", "<i4", 3)])
    faces["count"], faces["points"] = 3, mesh.faces
    return header.encode("ascii") + points.tobytes() + faces.tobytes()


WRITERS: dict[str, Callable[[Made, Path, Account], None]] = {VIDEO: _film, SOUND: _sound, THING: _thing}
