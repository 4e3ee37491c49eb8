"""Captions for a data set: a child loads the model, this side keeps what it writes. No torch here.

What has a caption is left alone, so an interrupted run goes on where it was; captions are kept as they come.
"""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from registry.errors import BadInput, StudioError
from registry.records import Dataset, Image
from studio.datasets.captioners.table import CaptionOptions
from studio.datasets.captions import clean_caption
from studio.datasets.ingest import images_of
from studio.settings import child_environment

if TYPE_CHECKING:
    from studio.workspace import Workspace

LOG = "captioner.log"  # in cache/
SAVE_SECONDS = 2.0  # between two writes to the catalog; more when a write takes long
_ROOT = str(Path(__file__).resolve().parents[3])

Progress = Callable[[str, int, int], None]  # phase, pictures done, pictures to do


@dataclass
class CaptionReport:
    """What came of it."""

    written: int = 0
    had: int = 0  # had a caption already
    empty: list[str] = field(default_factory=list[str])  # pictures the model found no words for
    model: str = ""
    revision: str = ""  # commit, of a model from the hub
    stopped: bool = False


def caption_dataset(
    ws: "Workspace",
    dataset: Dataset,
    options: CaptionOptions,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> CaptionReport:
    """Write a caption for every picture that has none.

    Args:
        ws: The workspace.
        dataset: Its pictures.
        options: Which captioner, and how.
        overwrite: Also for those that have one.
        progress: Told the phase and how far it is.
        stop: Asked several times a second; True ends the child, and what it wrote is kept.

    Raises:
        BadInput: an option out of range, a model that cannot be used.
        StudioError: the child died.
    """
    options.checked()
    images = images_of(ws, dataset)
    wanted = [image for image in images if overwrite or not image.caption.strip()]
    report = CaptionReport(had=len(images) - len(wanted))
    if not wanted:
        return report
    keep = _Keeper(ws, dataset, overwrite, report)
    say = progress or _silent
    say("starting", 0, len(wanted))
    with _Child(ws) as child:
        try:
            child.ask({"options": options.to_json(), "pictures": [_picture(ws, image) for image in wanted]})
            phase, done = "starting", 0
            while (answer := child.next(stop)) is not None and not answer.get("done"):
                phase = answer.get("phase", phase)
                done += len(answer.get("captions", ()))
                keep.take(answer)
                say(phase, done, len(wanted))
            report.stopped = answer is None
        finally:
            keep.save()
    return report


class _Keeper:
    """Stores captions now and then, against the data set as it is at that moment."""

    def __init__(self, ws: "Workspace", dataset: Dataset, overwrite: bool, report: CaptionReport) -> None:
        self._ws, self._dataset, self._overwrite, self._report = ws, dataset, overwrite, report
        self._waiting: dict[str, str] = {}
        self._next = 0.0

    def take(self, answer: Mapping[str, Any]) -> None:
        """One answer of the child."""
        if "error" in answer:
            raise BadInput(*(str(part) for part in answer["error"]))
        if "model" in answer:
            self._report.model, self._report.revision = str(answer["model"]), str(answer["revision"])
        self._waiting |= {key: clean_caption(str(text)) for key, text in answer.get("captions", {}).items()}
        if self._waiting and time.monotonic() >= self._next:
            self.save()

    def save(self) -> None:
        """Write what is waiting; someone may have removed or captioned pictures in the meantime."""
        if not self._waiting:
            return
        began = time.monotonic()
        images, changed = images_of(self._ws, self._dataset), list[Image]()
        for image in images:
            text = self._waiting.get(image.id)
            if text is None or (image.caption.strip() and not self._overwrite):
                changed.append(image)
                continue
            changed.append(replace(image, caption=text or image.caption))
            self._report.written += bool(text)
            if not text:
                self._report.empty.append(image.name)
        self._ws.catalog.replace_images(self._dataset.id, changed)
        self._waiting = {}
        now = time.monotonic()
        self._next = now + max(SAVE_SECONDS, 10 * (now - began))


class _Child:
    """The process and its answers; killed at the end of the block."""

    def __init__(self, ws: "Workspace") -> None:
        self._log = ws.home / "cache" / LOG
        self._answers: queue.Queue[str] = queue.Queue()

    def __enter__(self) -> "_Child":
        path = os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH", ""))))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "studio.datasets.captioners.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=child_environment() | {"PYTHONPATH": path, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
                text=True,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C is for the parent, which keeps what was written
            )
        threading.Thread(target=_read, args=(self._process.stdout, self._answers), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def ask(self, request: Mapping[str, Any]) -> None:
        """Send the request; a child that is dead already says so in `next`."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def next(self, stop: Callable[[], bool] | None) -> dict[str, Any] | None:
        """The next answer; None when `stop` says so.

        Raises:
            StudioError: there will be none.
        """
        while True:
            if stop is not None and stop():
                return None
            try:
                line = self._answers.get(timeout=0.2)
            except queue.Empty:
                continue
            if line:
                return json.loads(line)
            code = self._process.wait()
            lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            last = lines[-1][:200] if lines else f"exit code {code}"
            wrong = "was killed, which is what systems out of memory do" if code == -9 else f"died ({last})"
            raise StudioError("captioner", wrong.rstrip(". "), f"see {self._log}, or use a smaller one")


def _read(stream: IO[str], answers: "queue.Queue[str]") -> None:
    for line in stream:
        answers.put(line)
    answers.put("")


def _picture(ws: "Workspace", image: Image) -> dict[str, str]:
    return {"id": image.id, "path": str(ws.blobs.path(image.blob)), "name": image.name}


def _silent(phase: str, done: int, total: int) -> None: ...
