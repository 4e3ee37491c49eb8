"""A PostgreSQL server for the tests. `python -m tests.support.postgres` installs one when none is found.

It runs as a child on 127.0.0.1 with a folder of its own, never as root, and is gone when the tests are.
"""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.debian import install, may_install, must_be_there
from tests.support.serving import free_port

USER = "studio"
_STARTS_WITHIN = 60  # seconds


def find_server() -> Path | None:
    """The folder with `postgres` and `initdb`; Debian keeps them out of PATH. None when there is none."""
    if path := shutil.which("initdb"):
        return Path(path).resolve().parent
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    return found[-1].parent if found else None


@contextmanager
def running_server(programs: Path) -> Iterator[str]:
    """Start a server; yields the URL of its empty database without the name, `postgresql://user@host:port`."""
    who = _unprivileged()
    with tempfile.TemporaryDirectory(prefix="studio-postgres-") as name:
        folder = Path(name)
        if who:
            os.chown(folder, int(who["user"]), int(who["group"]))
        data, port = folder / "data", free_port()
        initdb = [programs / "initdb", "-D", data, "-U", USER, "--auth=trust", "--encoding=UTF8", "--no-sync"]
        subprocess.run([*initdb, "--locale=C.UTF-8"], check=True, capture_output=True, cwd=folder, **who)
        command = [programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", folder]
        command += ["-c", "fsync=off", "-c", "full_page_writes=off", "-c", "synchronous_commit=off"]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **who)
        try:
            _wait_for(server, port, folder / "log")
            yield f"postgresql://{USER}@127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGINT)  # ends connections, then itself
            server.wait(30)


def execute(url: str, statement: str) -> None:
    """Run one statement outside a transaction in the server's own database."""
    import psycopg

    with psycopg.connect(f"{url}/postgres", autocommit=True) as connection:
        connection.execute(statement)  # pyright: ignore[reportArgumentType]  our own text


def _unprivileged() -> dict[str, Any]:
    """Arguments of `subprocess` for another user, when we are root: the server refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    names = {user.pw_name: user for user in pwd.getpwall()}
    chosen = names.get("postgres") or names["nobody"]
    return {"user": chosen.pw_uid, "group": chosen.pw_gid, "extra_groups": []}


def _wait_for(server: "subprocess.Popen[Any]", port: int, log: Path) -> None:
    until = time.monotonic() + _STARTS_WITHIN
    while True:
        try:
            execute(f"postgresql://{USER}@127.0.0.1:{port}", "SELECT 1")
        except Exception:
            if server.poll() is not None or time.monotonic() > until:
                sys.stderr.write(log.read_text(errors="replace"))
                raise
            time.sleep(0.05)
        else:
            return


def main() -> int:
    """Install when missing and allowed; 1 when there should be one and is not."""
    if find_server() is None and may_install():
        install("postgresql")
    found = find_server()
    if found is None and must_be_there():
        sys.stderr.write("error: PostgreSQL: could not be installed. Install postgresql and run again.\n")
        return 1
    sys.stdout.write(f"postgresql: {found or 'none, its tests are skipped (apt-get install postgresql)'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
