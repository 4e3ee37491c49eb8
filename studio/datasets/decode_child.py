"""The decoding child: reads pictures from stdin, answers on stdout, holds nothing else.

    python -P -m studio.datasets.decode_child

Request:  {"name": str, "size": n, "as": "picture" | "alpha" (keep it as a mask) | "mask"} newline, n bytes.
Answer:   {"picture": {...} , "size": m, "mask": k} newline, m bytes (m = 0: store what came in), k bytes, or
          {"error": [thing, wrong, do]} newline.
It has little memory, a time limit for each picture, cannot write files, and ends when stdin does.
"""

import json
import os
import sys
import warnings
from dataclasses import asdict
from typing import IO

from PIL import AvifImagePlugin, Image

from registry.errors import BadInput
from studio.datasets.picture import Picture, normalise, normalise_mask

MEMORY = 3 * 2**30  # bytes of address space: turning a 64 MP picture takes about five copies of 256 MB
SECONDS = 30  # of processor time for one picture; 64 MP take about 5


def limit_process() -> None:
    """Memory, files and cores, for the life of the child, as far as the system has such limits."""
    try:
        import resource
    except ImportError:  # Windows: only the parent's clock limits a picture there
        return
    for kind, value in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        try:
            resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
        except (ValueError, OSError):  # macOS refuses some of them
            continue


def limit_next_picture() -> None:
    """Move the processor-time limit ahead; the kernel ends the child (SIGXCPU) when a picture crosses it."""
    try:
        import resource
    except ImportError:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(used.ru_utime + used.ru_stime) + SECONDS + 1
    soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def answer(picture: Picture) -> tuple[bytes, bytes]:
    """Header line and payload for a decoded picture."""
    payload = b"" if picture.kept else picture.data
    facts = {key: value for key, value in asdict(picture).items() if key not in {"data", "mask"}}
    head = {"picture": facts, "size": len(payload), "mask": len(picture.mask)}
    return json.dumps(head).encode() + b"\n", payload + picture.mask


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer until the requests end."""
    while line := requests.readline():
        request = json.loads(line)
        name = str(request["name"])
        payload = b""
        limit_next_picture()
        try:
            data, kind = requests.read(int(request["size"])), request.get("as", "picture")
            alpha = kind == "alpha"
            picture = normalise_mask(data, name) if kind == "mask" else normalise(data, name, alpha=alpha)
            head, payload = answer(picture)
        except BadInput as error:
            head = json.dumps({"error": [error.thing, error.wrong, error.do]}).encode() + b"\n"
        except MemoryError:
            wrong = f"needs more than {MEMORY // 2**30} GiB of memory to decode"
            head = json.dumps({"error": [name, wrong, "scale it down"]}).encode() + b"\n"
        answers.write(head)
        answers.write(payload)
        answers.flush()


def main() -> None:
    """Keep the real stdout for answers; whatever a library prints goes nowhere."""
    # A decoder's limits are ours (the size in the header, memory, time), not Pillow's warnings.
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = None
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the pool is the parallelism; threads cost address space
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    limit_process()
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
