"""The child that loads a captioner: one request on stdin, lines of JSON on stdout.

    python -m studio.datasets.captioners.child

Request:  {"options": {...}, "pictures": [{"id", "path", "name"}, ...]} newline.
Answers:  {"phase": "fetching" | "loading" | "captioning"}, {"model": str, "revision": str},
          {"captions": {id: text}}, {"error": [thing, wrong, do]}, {"done": true}; one a line.
It writes no files but the hub's cache, and can be killed at any time.
"""

import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from PIL import Image

from registry.errors import BadInput, StudioError
from studio.datasets.captioners.table import CaptionOptions

PACKAGE = "studio.datasets.captioners"
Say = Callable[[dict[str, Any]], None]
_MEMORY = re.compile(r"out of memory|not enough memory|Cannot allocate memory|can't allocate", re.IGNORECASE)


def serve(request: dict[str, Any], say: Say) -> None:
    """Fetch, load, write."""
    import torch

    from studio.datasets.captioners.base import find

    options = CaptionOptions.from_json(request["options"])
    say({"phase": "fetching"})
    place = find(options.model or options.info.model, options.revision)
    say({"phase": "loading"})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    captioner = importlib.import_module(f"{PACKAGE}.{options.info.module}").load(place, options, device)
    say({"model": place.name, "revision": place.revision})
    say({"phase": "captioning"})
    for captions in caption_all(captioner.caption, request["pictures"], options.batch):
        say({"captions": captions})
    say({"done": True})


def caption_all(
    caption: Callable[[Sequence[Image.Image]], list[str]], pictures: Sequence[dict[str, str]], batch: int
) -> Iterator[dict[str, str]]:
    """Captions by id, a batch at a time; batches are halved when memory runs out.

    Raises:
        BadInput: a picture that cannot be read.
        StudioError: memory runs out even for one.
    """
    at = 0
    while at < len(pictures):
        part = pictures[at : at + batch]
        try:
            texts = caption([_read(one) for one in part])
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, MemoryError) and not _MEMORY.search(str(error)):
                raise
            if batch == 1:
                wrong = "ran out for a single picture"
                raise StudioError("memory", wrong, "use a smaller captioner") from error
            batch //= 2
            continue
        yield {one["id"]: text for one, text in zip(part, texts, strict=True)}
        at += len(part)


def _read(picture: dict[str, str]) -> Image.Image:
    try:
        with Image.open(Path(picture["path"])) as opened:
            return opened.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        wrong = f"cannot be read ({error})"
        raise BadInput(f"picture {picture['name']}", wrong, "make the data set again") from error


def main() -> None:
    """Keep the real stdout for answers; what libraries print goes to stderr."""
    answers: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        serve(json.loads(sys.stdin.readline()), say)
    except StudioError as error:
        say({"error": [error.thing, error.wrong, error.do]})


if __name__ == "__main__":
    main()
