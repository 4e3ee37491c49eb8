"""A small Jobs service with the paths and answers of Ray 2.60, whose jobs are processes beside it.

It does what a test wants of a cluster: has no room, forgets, gives up, is not there, asks for a token.
"""

import json
import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]


@dataclass
class Held:
    """A job: what was submitted, and what became of it."""

    request: dict[str, Any]
    status: str = "PENDING"
    message: str = "Job has not started yet."
    error_type: str | None = None
    exit_code: int | None = None
    output: Path | None = None
    process: "subprocess.Popen[bytes] | None" = None
    stopped: bool = False


@dataclass
class Service:
    """A cluster with a head on 127.0.0.1.

    Args:
        logs: Folder for what jobs print.
        token: What it asks for; "" = nothing.
    """

    logs: Path
    token: str = ""
    room: bool = True  # whether jobs are started
    jobs: dict[str, Held] = field(default_factory=dict[str, Held])
    submitted: list[str] = field(default_factory=list[str])  # names taken, also of forgotten jobs
    asked: list[str] = field(default_factory=list[str])  # bodies of all submissions
    port: int = 0
    _server: ThreadingHTTPServer | None = None

    @property
    def address(self) -> str:
        """For the settings."""
        return f"http://127.0.0.1:{self.port}"

    def up(self) -> None:
        """Listen; at the same port as before."""
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service.answer(self, "GET")

            def do_POST(self) -> None:
                service.answer(self, "POST")

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def down(self) -> None:
        """Nobody answers; jobs go on."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def close(self) -> None:
        """Also end what still runs."""
        self.down()
        for job in self.jobs.values():
            if job.process is not None:
                self.kill(job)

    def kill(self, job: Held) -> None:
        """As Ray does it to a job whose actor has died: SIGKILL to the group of its command, no other."""
        assert job.process is not None
        if job.process.poll() is None:
            os.killpg(job.process.pid, signal.SIGKILL)
            job.process.wait()

    def make_room(self) -> None:
        """Start what waits."""
        self.room = True
        for job in self.jobs.values():
            if job.status == "PENDING":
                self._start(job)

    def give_up(self) -> None:
        """What has waited fails, as in Ray after 15 minutes."""
        for job in self.jobs.values():
            if job.status == "PENDING":
                job.status, job.error_type = "FAILED", "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"
                job.message = "Job supervisor actor failed to start within 900.0 seconds."

    def answer(self, request: BaseHTTPRequestHandler, method: str) -> None:
        """One request."""
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            missing = "Authorization" not in request.headers
            return _send(request, 401 if missing else 403, "Unauthorized" if missing else "Forbidden")
        parts = request.path.strip("/").split("/")
        if parts == ["api", "version"]:
            facts = {"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""}
            return _send(request, 200, facts)
        if parts == ["api", "jobs"] and method == "POST":
            body = request.rfile.read(int(request.headers["Content-Length"])).decode()
            return self._submit(request, body)
        name = parts[2]
        if name not in self.jobs:
            return _send(request, 404, f"Job {name} does not exist")
        job = self.jobs[name]
        self._look(job)
        if parts[3:] == ["stop"]:
            self._stop(job)
            return _send(request, 200, {"stopped": True})
        if parts[3:] == ["logs"]:
            text = job.output.read_text() if job.output is not None else ""
            return _send(request, 200, {"logs": text})
        facts = {"type": "SUBMISSION", "submission_id": name, "entrypoint": job.request["entrypoint"]}
        facts |= {"status": job.status, "message": job.message, "error_type": job.error_type}
        return _send(request, 200, facts | {"driver_exit_code": job.exit_code})

    def _submit(self, request: BaseHTTPRequestHandler, body: str) -> None:
        wanted = json.loads(body)
        name = wanted["submission_id"]
        self.asked.append(body)
        if name in self.jobs:
            return _send(request, 500, f"ValueError: Job with submission_id {name} already exists.")
        self.jobs[name] = Held(wanted)
        self.submitted.append(name)
        if self.room:
            self._start(self.jobs[name])
        return _send(request, 200, {"job_id": name, "submission_id": name})

    def _start(self, job: Held) -> None:
        job.output = self.logs / f"{job.request['submission_id']}.log"
        variables = job.request["runtime_env"]["env_vars"] | {"PYTHONPATH": str(ROOT)}
        command = ["/bin/sh", "-c", job.request["entrypoint"]]
        with job.output.open("wb") as output:
            job.process = subprocess.Popen(
                command, start_new_session=True, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                cwd="/", env=os.environ | variables,
            )  # fmt: skip
        job.status, job.message = "RUNNING", "Job is currently running."
        if job.stopped:
            self._stop(job)

    def _look(self, job: Held) -> None:
        code = job.process.poll() if job.process is not None else None
        if job.status == "RUNNING" and code is not None:
            job.status, job.exit_code = "FAILED" if code else "SUCCEEDED", code
            job.message = f"Job entrypoint command failed with exit code {code}" if code else "Job finished."

    def _stop(self, job: Held) -> None:
        job.stopped = True
        if job.process is None or job.process.poll() is not None:
            return
        parent = psutil.Process(job.process.pid)
        for process in [parent, *parent.children(recursive=True)]:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + float(
            job.request["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]
        )
        while job.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        job.status, job.message = "STOPPED", "Job was intentionally stopped."


def _send(request: BaseHTTPRequestHandler, code: int, value: Any) -> None:
    data = (value if isinstance(value, str) else json.dumps(value)).encode()
    request.send_response(code)
    request.send_header("Content-Type", "text/plain" if isinstance(value, str) else "application/json")
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    request.wfile.write(data)
