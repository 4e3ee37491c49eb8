"""The web server: Streamlit's app object with our picture routes in it and our guard in front of it."""

import errno
import os
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

from registry.errors import BadInput, StudioError, WorkspaceBusy
from studio.app import state, theme
from studio.app.guard import LOOPBACK, Guard
from studio.app.password import Door, hash_password
from studio.app.routes import ROUTES
from studio.app.token import Token
from studio.blas import one_thread
from studio.lock import hold_lock
from studio.settings import PASSWORD
from studio.workspace import Workspace

SCRIPT = theme.HERE / "streamlit_app.py"
UPLOAD_MB = 1024  # a folder of photographs as a zip; held in memory until it is read
START_SECONDS = 30
WATCH_SECONDS = 3.0  # between looks whether there is a worker
LONGEST_WATCH_SECONDS = 300.0


def serve(
    workspace: Workspace, port: int = 8501, listen: str = "127.0.0.1", *, open_browser: bool = False
) -> None:
    """Start the worker when none runs, then serve until a signal ends it.

    Raises:
        BadInput: an address beyond this machine without a password, or a port that is taken.
        WorkspaceBusy: another app serves this workspace; says where.
    """
    door = make_door(workspace, listen)
    _require_free(listen, port)
    address = f"http://{_shown(listen)}:{port}"
    with only_app(workspace, address):
        state.use(workspace, works=True)
        threading.Thread(target=keep_worker, daemon=True).start()
        threading.Thread(target=_announce, args=(address, open_browser), daemon=True).start()
        token = Token(workspace.settings.api_token, needed=door is not None)
        make_app(listen=listen, door=door, token=token).run(config=options(port, listen))


@contextmanager
def only_app(workspace: Workspace, address: str) -> Generator[None]:
    """One app a workspace: two would overwrite each other's notes. The lock dies with its holder.

    Raises:
        WorkspaceBusy: another one is there; says where.
    """
    with ExitStack() as held:
        try:
            held.enter_context(hold_lock(workspace.home / "app.lock", f"the app at {address}"))
        except WorkspaceBusy:
            raise
        except StudioError:
            pass  # a workspace that cannot be written to: readers are not in each other's way
        yield


def make_app(*, listen: str = "127.0.0.1", door: Door | None = None, token: Token | None = None) -> Any:
    """The ASGI application (streamlit.App)."""
    one_thread()  # numpy comes with streamlit
    import streamlit
    from starlette.middleware import Middleware

    from studio.api.application import mounts  # here: the pages under test do without it

    beyond = not is_loopback(listen)
    hosts = LOOPBACK | {listen.lower()} | ({socket.gethostname().lower()} if beyond else frozenset())
    guard = Middleware(Guard, hosts=hosts, any_address=beyond, door=door, token=token)  # pyright: ignore[reportArgumentType]
    routes = [*mounts(), *ROUTES, *(door.routes() if door else [])]
    return streamlit.App(SCRIPT, routes=routes, middleware=[guard], on_script_error=show_error)


def options(port: int, listen: str) -> dict[str, object]:
    """Streamlit's settings: quiet, local, no telemetry, our theme."""
    return theme.options() | {
        # Nothing here is shown by standing on a line alone, and Python before 3.11.8 sometimes fails to parse
        # pages for that while another thread works (cpython issue 106905).
        "runner.magicEnabled": False,
        # A look through all objects after each run of a script, so every second while something is drawn,
        # was most of what the server took. Python looks for garbage by itself.
        "runner.postScriptGC": False,
        "server.port": port,
        "server.address": listen,
        "server.headless": True,
        "server.enableCORS": True,
        "server.enableXsrfProtection": True,
        "server.fileWatcherType": "none",
        "server.maxUploadSize": UPLOAD_MB,
        "browser.gatherUsageStats": False,
        "client.allowedOrigins": [],
        "client.toolbarMode": "viewer",
        "client.showErrorDetails": "none",
        "client.showErrorLinks": "false",
        "logger.hideWelcomeMessage": True,
    }


def make_door(workspace: Workspace, listen: str) -> Door | None:
    """The password check, when a password is set; an address beyond this machine needs one.

    Raises:
        BadInput: no password for such an address.
    """
    plain, stored = os.environ.get(PASSWORD, ""), workspace.settings.password_hash
    if plain:
        stored = hash_password(plain)
    if not stored and not is_loopback(listen):
        raise BadInput(
            f"--listen {listen}",
            "lets others in, and no password is set",
            f"set {PASSWORD}, or put the line of `python -m studio.app.password` into studio.toml",
        )
    return Door(stored, workspace.key) if stored else None


def is_loopback(listen: str) -> bool:
    """Whether `listen` reaches this machine only."""
    return listen in LOOPBACK or listen.startswith("127.")


def show_error(error: Exception) -> bool:
    """One line instead of a traceback; Streamlit has already written the traceback to the terminal."""
    import streamlit as st

    from studio.app.words import md

    if isinstance(error, StudioError):
        st.error(md(error), icon=":material/error:")
    else:
        what = f"{type(error).__name__}: {str(error)[:300]}"
        st.error(
            f"Something went wrong on this page: {md(what)}. Nothing of yours was lost; reload to go on. "
            "The terminal of the server has the details.",
            icon=":material/error:",
        )
    return True


def _require_free(listen: str, port: int) -> None:
    try:
        info = socket.getaddrinfo(listen, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(info[0], info[1]) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(info[4])
    except socket.gaierror:
        raise BadInput(f"--listen {listen}", "is not an address of this machine", "use 127.0.0.1") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise BadInput(f"port {port}", "is in use", f"try: studio app --port {port + 1}") from None
        reason = (error.strerror or str(error)).lower()
        raise BadInput(f"{listen}:{port}", f"cannot be used ({reason})", "choose another port") from None


def _shown(listen: str) -> str:
    if listen in {"0.0.0.0", "::"}:
        return socket.gethostname()
    return f"[{listen}]" if ":" in listen else listen


def keep_worker(ended: Callable[[], bool] = lambda: False) -> None:
    """See to it that there is a worker for as long as we serve: one that was killed, or that an earlier app
    left behind and that ended when its queue was empty, is replaced. Why none comes up is said once.
    """
    said, wait = "", WATCH_SECONDS
    while not ended():
        try:
            state.wake_worker()
            said, wait = "", WATCH_SECONDS
        except StudioError as error:
            if str(error) != said:
                said = str(error)
                sys.stderr.write(f"error: {said}\n")
            wait = min(2 * wait, LONGEST_WATCH_SECONDS)  # a start that fails costs seconds
        time.sleep(wait)


def _announce(address: str, open_browser: bool) -> None:
    """Say where the page is once it answers; a URL that does not work yet helps nobody."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{address}/_stcore/health", timeout=1):
                break
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    sys.stderr.write(f"LoRA Studio: {address}  (Ctrl-C ends it)\n")
    sys.stderr.flush()
    if open_browser:
        import webbrowser

        webbrowser.open(address)
