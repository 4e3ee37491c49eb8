"""The worker's side of the sampler process: start it when needed, never wait for it, bury it when it dies."""

import json
import queue
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from registry.errors import StudioError
from registry.records import JSON, JobState, Sample
from studio.keywords import add_prompt
from studio.runs.device import thread_environment
from studio.runs.outcome import tail
from studio.sampling.task import REQUEST, SampleTask
from studio.settings import child_environment

if TYPE_CHECKING:
    from studio.workspace import Workspace

LOG = "sampler.log"  # in cache/
MAX_LOG = 1 << 20  # bytes; a longer one is begun anew
TRIES = 2  # a sampler that dies under a request gets a second chance with it


@dataclass(frozen=True)
class SampleResult:
    """How a sample's job ended."""

    state: JobState
    error: str = ""
    result: JSON = field(default_factory=dict[str, Any])


class SamplerClient:
    """One warm `studio.sampling.server` and the one request it works on.

    Args:
        ws: The workspace.
        idle: Seconds without a request after which the process is ended.
    """

    def __init__(self, ws: "Workspace", *, idle: float = 600.0) -> None:
        self._ws, self._idle = ws, idle
        self._process: subprocess.Popen[str] | None = None
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._sample = ""
        self._tries = 0
        self._cancelling = False
        self._result: SampleResult | None = None
        self._used_at = time.monotonic()

    @property
    def pid(self) -> int | None:
        """Of the living sampler."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self, sample_id: str) -> None:
        """Begin a request; `tick` and `result` tell how it goes. Only one at a time."""
        assert not self._sample
        self._sample, self._tries, self._cancelling, self._result = sample_id, 0, False, None
        self._send_task()

    def tick(self) -> None:
        """Take what the sampler said since the last call; notice its death; end it when long idle."""
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                break
            self._take(event)
        dead = self._process is not None and self._process.poll() is not None
        if dead and self._sample and self._events.empty():
            self._bury()
        elif self._process is not None and not self._sample and time.monotonic() - self._used_at > self._idle:
            self.unload()

    def result(self) -> SampleResult | None:
        """How the request ended; None while it goes on. Says it once."""
        ended, self._result = self._result, None
        return ended

    def cancel(self) -> None:
        """Call the request off; the sampler stops within one step."""
        if self._sample and not self._cancelling:
            self._cancelling = True
            self._send({"do": "cancel"})

    def unload(self) -> None:
        """End the process: its memory, also the part that the libraries never give back, is free then.

        It is killed: between requests nothing is half written, and an orderly end takes a second or two.
        """
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def close(self) -> None:
        """The worker ends: so does the sampler."""
        self.unload()

    # -- parts

    def _send_task(self) -> None:
        self._tries += 1
        folder = self._ws.sample_dir(self._sample)
        try:
            if not (folder / REQUEST).exists():
                raise StudioError(f"sample {self._sample}", "has lost its request file", "ask for it again")
            task = SampleTask.read(folder).resolved(self._ws.resolve)
            self._spawn()
        except (StudioError, OSError, ValueError) as error:
            self._end(SampleResult(JobState.FAILED, str(error)))
            return
        self._send({"do": "sample", "task": task.to_json(), "folder": str(folder)})

    def _spawn(self) -> None:
        if self.pid is not None:
            return
        path = self._ws.home / "cache" / LOG
        with path.open("wb" if path.exists() and path.stat().st_size > MAX_LOG else "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "studio.sampling.server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for the worker, which ends the sampler in order
            )
        self._events = queue.Queue()
        reader = threading.Thread(target=_read, args=(self._process.stdout, self._events), daemon=True)
        reader.start()

    def _send(self, order: dict[str, Any]) -> None:
        process = self._process
        if process is None or process.stdin is None:
            return
        try:
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
        except (BrokenPipeError, ValueError):
            return  # it died; the next tick says so

    def _take(self, event: dict[str, Any]) -> None:
        self._used_at = time.monotonic()
        kind = event["event"]
        if kind == "done":
            self._finish(event)
        elif kind == "failed":
            self._end(SampleResult(JobState.FAILED, str(event["error"])))
        elif kind == "cancelled":
            self._end(SampleResult(JobState.CANCELLED, "cancelled"))

    def _finish(self, event: dict[str, Any]) -> None:
        """The files are there: now the row may say so."""
        folder = self._ws.sample_dir(self._sample)
        files = tuple(self._ws.relative(folder / name) for name in event["files"])
        sample = self._ws.catalog.update(Sample, self._sample, files=files)
        result = {"files": list(files), "warnings": event["warnings"], "seconds": event["seconds"]}
        self._end(SampleResult(JobState.DONE, result=result))
        add_prompt(self._ws, sample)

    def _bury(self) -> None:
        """The sampler died under a request: once more, then it is said."""
        assert self._process is not None
        code, self._process = self._process.returncode, None
        if self._cancelling:
            self._end(SampleResult(JobState.CANCELLED, "cancelled"))
        elif self._tries < TRIES:
            self._send_task()
        else:
            said = [line for line in tail(self._ws.home / "cache" / LOG, 4096).splitlines() if line.strip()]
            memory = " most likely for memory; draw a smaller picture" if code in {-9, 137} else ""
            last = f"; its last line: {said[-1][:200]}" if said and not memory else ""
            wrong = f"ended the sampler twice (exit code {code}){memory}{last}"
            self._end(SampleResult(JobState.FAILED, str(StudioError(f"sample {self._sample}", wrong))))

    def _end(self, result: SampleResult) -> None:
        self._sample, self._result, self._used_at = "", result, time.monotonic()


def _read(stream: IO[str] | None, events: "queue.Queue[dict[str, Any]]") -> None:
    assert stream is not None
    for line in stream:
        events.put(json.loads(line))


def _environment() -> dict[str, str]:
    """The sampler's environment. The network stays: a base may be a hub id; others load from files only."""
    return child_environment() | {
        "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **thread_environment(),
    }
