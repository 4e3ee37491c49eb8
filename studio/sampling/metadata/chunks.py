"""What our own sounds and meshes say about themselves: a comment in a WAV, a comment in a PLY's header."""

import struct
from pathlib import Path
from typing import IO

from registry.errors import BadInput
from studio.sampling.metadata.said import OWN

MAX_TEXT = 2**20  # bytes of a comment
MOST_CHUNKS = 1000
_MARK = f"{OWN} ".encode("ascii")


def own_text(path: Path) -> str | None:
    """Our JSON in a sound or a mesh, "" when it holds none; None: it is neither.

    Raises:
        BadInput: it cannot be read, or is damaged.
    """
    try:
        with path.open("rb") as file:
            head = file.read(12)
            if head[:4] == b"RIFF" and head[8:] == b"WAVE":
                return _of_wav(file)
            if head.startswith((b"ply\n", b"ply\r")):
                file.seek(0)
                return _of_ply(file)
    except FileNotFoundError as error:
        raise BadInput(str(path), "does not exist", "check the path") from error
    except OSError as error:
        raise BadInput(str(path), "cannot be read", "choose another file") from error
    return None


def _of_wav(file: IO[bytes]) -> str:
    """Walks over the chunks; the sound itself is not read."""
    for _ in range(MOST_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            break
        name, size = head[:4], struct.unpack("<I", head[4:])[0]
        if name == b"LIST" and size <= MAX_TEXT:
            if text := _comment(file.read(size)):
                return text
            file.seek(size % 2, 1)
        else:
            file.seek(size + size % 2, 1)
    return ""


def _comment(body: bytes) -> str:
    """ICMT of a list of infos."""
    place = 4  # behind its type
    while body[:4] == b"INFO" and place + 8 <= len(body):
        name, size = body[place : place + 4], struct.unpack("<I", body[place + 4 : place + 8])[0]
        text = body[place + 8 : place + 8 + size]
        if name == b"ICMT" and text.startswith(_MARK):
            return text.removeprefix(_MARK).rstrip(b"\0").decode("utf-8", "replace")
        place += 8 + size + size % 2
    return ""


def _of_ply(file: IO[bytes]) -> str:
    left = MAX_TEXT
    while left > 0 and (line := file.readline(left)):
        left -= len(line)
        said = line.strip()
        if said == b"end_header":
            break
        if said.startswith(b"comment " + _MARK):
            return said.removeprefix(b"comment " + _MARK).decode("utf-8", "replace")
    return ""
