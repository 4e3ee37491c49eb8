"""The warm sampler process: JSON lines in on stdin, JSON lines out on stdout, pictures into a folder.

    in   {"do": "sample", "task": {...}, "folder": "..."}   one at a time
         {"do": "cancel"}                                   the one being drawn
         {"do": "unload"}                                   give memory back, stay ready
    out  {"event": "ready"}
         {"event": "done", "files": [...], "warnings": [...], "seconds": 1.2}
         {"event": "failed", "error": "..."} | {"event": "cancelled"} | {"event": "unloaded"}

It ends when stdin closes, so it never outlives its worker. Whatever a library prints goes to stderr.
"""

import json
import os
import queue
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import IO, TYPE_CHECKING, Any

from registry.errors import StudioError
from registry.files import atomic_path, write_json
from studio.sampling.media.writing import write_made
from studio.sampling.metadata.writing import account, picture_request, write_picture
from studio.sampling.task import PREVIEW, PROGRESS, SampleTask, map_name, picture_name
from trainers.garbage import seldom_collecting
from trainers.spared import spare

if TYPE_CHECKING:
    from PIL import Image as Pixels

    from studio.sampling.engine import Engine, How
    from studio.sampling.media.made import Made
    from studio.sampling.progress import Progress

PROGRESS_EVERY = 0.1  # seconds


class Server:
    """Takes requests until its input closes.

    Args:
        lines: Requests.
        answers: The protocol's output, and nothing else's.
    """

    def __init__(self, lines: IO[str], answers: IO[str]) -> None:
        self._lines, self._answers = lines, answers
        self._orders: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._cancelled = threading.Event()
        self._busy = False

    def serve(self) -> None:
        """Answer requests until stdin closes."""
        threading.Thread(target=self._read, daemon=True).start()
        loading = ExitStack()
        loading.enter_context(seldom_collecting())  # to the end of the first picture: it loads libraries too
        from studio.sampling.engine import Engine  # seconds; meanwhile the reader already listens

        engine = Engine()
        self._answer({"event": "ready"})
        while (order := self._orders.get()) is not None:
            if order["do"] == "sample":
                answer = self._sample(engine, order)
                loading.close()
                self._busy = False  # before the answer: the next request may be here right after it
                self._answer(answer)
            elif order["do"] == "unload":
                engine.unload()
                self._answer({"event": "unloaded"})

    def _read(self) -> None:
        for line in self._lines:
            order: dict[str, Any] = json.loads(line)
            if order["do"] == "cancel":
                self._cancelled.set()
                continue
            if order["do"] == "sample":
                self._cancelled.clear()
                self._busy = True
            self._orders.put(order)
        if self._busy:
            os._exit(
                1
            )  # the worker is gone: nobody waits for this picture, and no later step may delay the end
        self._orders.put(None)

    def _answer(self, answer: dict[str, Any]) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()

    def _sample(self, engine: "Engine", order: dict[str, Any]) -> dict[str, Any]:
        """One request; whatever goes wrong becomes an answer, and the next one is served."""
        from studio.sampling.painting import Cancelled

        task, folder = SampleTask.from_json(order["task"]), Path(order["folder"])
        started = monotonic()
        writer = _Writer(task, folder)
        news: dict[str, Any] = {"say": writer.say, "cancelled": self._cancelled.is_set}
        try:
            if task.request.kind:
                drawn = engine.make(task, keep=writer.keep_made, **news)
            else:
                drawn = engine.draw(task, keep=writer.keep, keep_map=writer.keep_map, **news)
        except Cancelled:
            return {"event": "cancelled"}
        except StudioError as error:
            return {"event": "failed", "error": str(error)}
        except Exception as error:  # noqa: BLE001  a bad request must not end the warm process
            import traceback

            traceback.print_exc()
            return {"event": "failed", "error": f"sample {task.id}: {type(error).__name__}: {error}"}
        seconds = round(monotonic() - started, 3)
        return {"event": "done", "files": writer.files, "warnings": drawn.warnings, "seconds": seconds}


class _Writer:
    """Progress, previews and pictures of one request, in its folder."""

    def __init__(self, task: SampleTask, folder: Path) -> None:
        self._task, self._folder = task, folder
        self._said_at = 0.0
        self._phase = ""
        self.files: list[str] = []

    def say(self, progress: "Progress") -> None:
        """Write progress.json, at most ten times a second, and the preview when there is a new one."""
        if progress.preview is not None:
            with atomic_path(self._folder / PREVIEW, durable=False) as temporary:
                progress.preview.save(temporary, format="png")
        if progress.phase == self._phase and monotonic() - self._said_at < PROGRESS_EVERY:
            return
        self._phase, self._said_at = progress.phase, monotonic()
        news = {
            "phase": progress.phase,
            "step": progress.step,
            "steps": progress.steps,
            "picture": progress.picture,
            "pictures": progress.pictures,
            "preview": (self._folder / PREVIEW).exists(),
        }
        write_json(self._folder / PROGRESS, news, durable=False)

    def keep_map(self, index: int, picture: "Pixels.Image") -> None:
        """Write what a control's network reads, beside the pictures."""
        with atomic_path(self._folder / map_name(index)) as temporary:
            picture.save(temporary, format="png")

    def keep(self, index: int, picture: "Pixels.Image", how: "How") -> None:
        """Write one finished picture with its metadata, which says how it was made in the end."""
        name = picture_name(index, self._task.request.format)
        write_picture(
            picture,
            self._folder / name,
            self._task.request.model_copy(update={"precision": how.precision, "speed": how.speed}),
            index=index,
            base_name=self._task.base.name,
            base_hash=self._task.base.weight_hash,
            base_scheduler=how.scheduler,
            adapters=self._task.adapters,
        )
        self.files.append(name)

    def keep_made(self, index: int, made: "Made") -> None:
        """Write one finished video, sound or thing with what makes it again."""
        task = self._task
        base, motion = (
            {"id": part.id, "name": part.name, "hash": part.weight_hash} if part else None
            for part in (task.base, task.motion)
        )
        own = account(picture_request(task.request, index), index, base or {}, motion=motion)
        self.files.append(write_made(made, self._folder, index, own))


def main() -> None:
    """Serve on this process's stdin and stdout."""
    spare("bitsandbytes", "peft")  # drawing needs neither: adapters act through our own layers
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a print in some library must not break the protocol
    Server(sys.stdin, answers).serve()


if __name__ == "__main__":
    main()
