"""How light the parts without torch are: CPU seconds of `studio --help`, seconds until the app is healthy."""

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

RUNS = 5


def cpu_of(*command: str) -> float:
    """CPU seconds (user + system) of one child process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def seconds_to_healthy(home: str) -> float:
    """Wall seconds from the start of `studio app` to its first healthy answer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "studio.cli", "--home", home, "app", "--port", str(port), "--no-browser"]
    start = time.monotonic()
    app = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        while time.monotonic() - start < 60:
            with contextlib.suppress(OSError):
                url = f"http://127.0.0.1:{port}/_stcore/health"
                with urllib.request.urlopen(url, timeout=1) as answer:
                    if answer.status == 200:
                        return time.monotonic() - start
            time.sleep(0.05)
    finally:
        os.killpg(app.pid, signal.SIGTERM)
        app.wait(timeout=70)
    raise SystemExit("error: the app was not healthy within 60 s")


def main() -> None:
    """Print the figures."""
    helps = sorted(cpu_of("-m", "studio.cli", "--help") for _ in range(RUNS))
    with tempfile.TemporaryDirectory() as home:
        healthy = sorted(seconds_to_healthy(home) for _ in range(3))
    figures = {"help_cpu_s": round(helps[RUNS // 2], 2), "app_healthy_s": round(healthy[1], 1)}
    print(json.dumps(figures | {"limits": [0.6, 8]}))


if __name__ == "__main__":
    main()
