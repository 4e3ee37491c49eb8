"""The server: who may come in, what it hands out, how it refuses."""

import http.client
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from registry.errors import BadInput, StudioError, WorkspaceBusy
from registry.records import Adapter, Image, Run, RunState, Sample
from studio.app import password, server, state
from studio.app.guard import LOOPBACK, Guard
from studio.app.password import Door, check_password, hash_password
from studio.app.routes import ROUTES, picture_url
from studio.workspace import Workspace
from tests.support.serving import free_port, wait_until_healthy

ESCAPES = (
    "..",
    "../../catalog.sqlite",
    "..%2f..%2fcatalog.sqlite",
    "%2e%2e/key",
    "....//key",
    "/etc/passwd",
    "key",
    "a\\..\\key",
    "%00",
    "catalog.sqlite",
)


@pytest.fixture
def pictures(filled: Workspace) -> Iterator[TestClient]:
    """The picture routes on a filled workspace."""
    state.use(filled)
    yield TestClient(Starlette(routes=ROUTES))
    state.use(None)


def guarded(**options: object) -> TestClient:
    """A page and a websocket behind the guard."""

    async def page(_request: object) -> PlainTextResponse:
        return PlainTextResponse("in")

    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("in")
        await socket.close()

    door = options.get("door")
    routes = [Route("/", page, methods=["GET", "POST"]), WebSocketRoute("/ws", talk)]
    routes += door.routes() if isinstance(door, Door) else []
    middleware = [Middleware(Guard, **options)]  # pyright: ignore[reportArgumentType]
    return TestClient(Starlette(routes=routes, middleware=middleware), base_url="http://127.0.0.1:8501")


@pytest.mark.parametrize("host", ["127.0.0.1:8501", "localhost:8501", "[::1]:8501", "LOCALHOST"])
def test_our_own_names_may_come_in(host: str):
    assert guarded().get("/", headers={"host": host}).text == "in"


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "", "192.168.1.7:8501", "x.localhost"]
)
def test_foreign_hosts_are_refused(host: str):
    answer = guarded().get("/", headers={"host": host})
    assert answer.status_code == 400
    assert answer.text.startswith("error: host")


def test_beyond_this_machine_addresses_are_ours_but_names_are_not():
    client = guarded(any_address=True)
    assert client.get("/", headers={"host": "192.168.1.7:8501"}).status_code == 200
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "https://localhost:8501"]
)
def test_foreign_origins_are_refused_on_every_kind_of_request(origin: str):
    client = guarded()
    headers = {"host": "127.0.0.1:8501", "origin": origin}
    assert client.get("/", headers=headers).status_code == 403
    assert client.post("/", headers=headers).status_code == 403
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/ws", headers=headers):
        pass


def test_our_own_origin_may_come_in():
    headers = {"host": "127.0.0.1:8501", "origin": "http://127.0.0.1:8501"}
    client = guarded()
    assert client.post("/", headers=headers).text == "in"
    with client.websocket_connect("/ws", headers=headers) as socket:
        assert socket.receive_text() == "in"


def test_every_answer_carries_protective_headers():
    for answer in (guarded().get("/"), guarded().get("/", headers={"host": "evil.example"})):
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


@pytest.fixture(scope="module")
def stored() -> str:
    return hash_password("correct horse")


@pytest.fixture
def door(stored: str, monkeypatch: pytest.MonkeyPatch) -> Door:
    monkeypatch.setattr(password, "PAUSE", 0.01)
    return Door(stored, b"k" * 32)


def test_passwords_are_salted_and_checked(stored: str):
    assert check_password("correct horse", stored)
    assert not check_password("correct horse ", stored)
    assert not check_password("correct horse", "scrypt$zz$zz")
    assert hash_password("correct horse") != stored
    with pytest.raises(BadInput):
        hash_password("short")


def test_with_a_password_nothing_opens_without_signing_in(door: Door):
    client = guarded(door=door)
    page = client.get("/", headers={"accept": "text/html"}, follow_redirects=False)
    assert (page.status_code, page.headers["location"]) == (303, "/login")
    assert client.get("/").status_code == 401
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect("/ws", headers={"host": "127.0.0.1:8501"}),
    ):
        pass
    assert "password" in client.get("/login").text


def test_the_right_password_opens_and_the_wrong_one_does_not(door: Door):
    client = guarded(door=door)
    assert client.post("/login", content=urlencode({"password": "guess"})).status_code == 401
    assert client.get("/").status_code == 401
    answer = client.post("/login", content=urlencode({"password": "correct horse"}), follow_redirects=False)
    assert answer.status_code == 303
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert client.get("/").text == "in"
    carried = {"host": "127.0.0.1:8501", "cookie": answer.headers["set-cookie"].partition(";")[0]}
    with client.websocket_connect("/ws", headers=carried) as socket:
        assert socket.receive_text() == "in"
    client.get("/logout")
    assert client.get("/").status_code == 401


def test_sessions_cannot_be_made_up_or_outlive_their_time(door: Door, stored: str):
    until, _, signature = door.session().partition(".")
    later, past = str(int(until) + 1), str(int(time.time()) - 1)
    assert door.knows(f"{password.COOKIE}={until}.{signature}")
    assert not door.knows(f"{password.COOKIE}={later}.{signature}")
    assert not door.knows(f"{password.COOKIE}={past}.{door._sign(past)}")
    assert not door.knows(f"{password.COOKIE}=x")
    assert not Door(stored, b"other key").knows(f"{password.COOKIE}={until}.{signature}")


def test_another_address_needs_a_password(empty: Workspace, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("STUDIO_PASSWORD", raising=False)
    with pytest.raises(BadInput, match="no password is set"):
        server.make_door(empty, "0.0.0.0")
    assert server.make_door(empty, "127.0.0.1") is None
    monkeypatch.setenv("STUDIO_PASSWORD", "correct horse")
    assert isinstance(server.make_door(empty, "0.0.0.0"), Door)


def test_the_command_line_refuses_another_address_without_a_password(tmp_path: Path):
    command = [
        sys.executable,
        "-m",
        "studio.cli",
        "--home",
        str(tmp_path / "w"),
        "app",
        "--listen",
        "0.0.0.0",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --listen 0.0.0.0: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_taken_port_is_named(empty: Workspace):
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(BadInput, match=f"port {port}: is in use"):
            server.serve(empty, port)


def test_a_workspace_has_one_app(empty: Workspace):
    first = server.only_app(empty, "http://127.0.0.1:8501")
    with first, pytest.raises(WorkspaceBusy, match=r"held by the app at http://127\.0\.0\.1:8501 \(process"):  # noqa: SIM117
        with server.only_app(empty, "http://127.0.0.1:8502"):
            pass
    with server.only_app(empty, "http://127.0.0.1:8502"):  # the first has let go
        pass


def test_a_worker_that_does_not_come_up_is_tried_again_and_complained_of_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    tries: list[float] = []

    def fail() -> None:
        raise StudioError("worker", "did not start", "see the log")

    monkeypatch.setattr(state, "wake_worker", fail)
    monkeypatch.setattr(server.time, "sleep", tries.append)
    server.keep_worker(lambda: len(tries) == 9)
    assert capsys.readouterr().err == "error: worker: did not start. see the log.\n"
    assert tries == sorted(tries)
    assert tries[-1] == server.LONGEST_WATCH_SECONDS


def test_pictures_of_a_data_set_are_cached_for_good(pictures: TestClient, filled: Workspace):
    image = filled.catalog.list(Image, limit=1)[0]
    for kind in ("blob", "thumb"):
        answer = pictures.get(picture_url(kind, image.blob))
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "image/png"
        assert "immutable" in answer.headers["cache-control"]
        again = pictures.get(picture_url(kind, image.blob), headers={"if-none-match": answer.headers["etag"]})
        assert again.status_code == 304
        assert again.content == b""


def test_pictures_of_records_are_asked_for_again(pictures: TestClient, filled: Workspace):
    adapter = filled.catalog.get(Adapter, "ink wash")
    sample = filled.catalog.list(Sample, limit=1)[0]
    run = filled.catalog.list(Run, state=RunState.RUNNING)[0]
    urls = [
        picture_url("adapter", adapter.id),
        picture_url("sample", sample.id, 0),
        picture_url("run", run.id, "step-000050-p0.png"),
    ]
    for url in urls:
        answer = pictures.get(url)
        assert answer.status_code == 200, url
        assert "no-cache" in answer.headers["cache-control"]
        assert pictures.get(url, headers={"if-none-match": answer.headers["etag"]}).status_code == 304


@pytest.mark.parametrize("escape", ESCAPES)
def test_nothing_but_pictures_leaves(pictures: TestClient, filled: Workspace, escape: str):
    run = filled.catalog.list(Run, state=RunState.RUNNING)[0]
    sample = filled.catalog.list(Sample, limit=1)[0]
    for url in (
        f"/pictures/blob/{escape}",
        f"/pictures/thumb/{escape}",
        f"/pictures/adapter/{escape}",
        f"/pictures/sample/{escape}/0",
        f"/pictures/sample/{sample.id}/{escape}",
        f"/pictures/run/{run.id}/{escape}",
        f"/pictures/run/{escape}/step-000050-p0.png",
        f"/files/export/{escape}",
    ):
        assert pictures.get(url).status_code == 404, url


def test_a_preview_outside_the_workspace_or_that_is_no_picture_is_not_shown(
    pictures: TestClient, filled: Workspace, tmp_path: Path
):
    adapter = filled.catalog.get(Adapter, "ink wash")
    secret = tmp_path / "secret.png"
    secret.write_bytes((filled.home / "adapters" / "demo1.png").read_bytes())
    for preview in (str(secret), "key", "adapters/demo1.safetensors"):
        filled.catalog.update(Adapter, adapter.id, preview=preview)
        assert pictures.get(picture_url("adapter", adapter.id)).status_code == 404


def test_an_exported_file_is_saved_under_its_name(pictures: TestClient, filled: Workspace):
    (filled.home / "exports" / "ink.safetensors").write_bytes(b"weights")
    answer = pictures.get("/files/export/ink.safetensors")
    assert answer.content == b"weights"
    assert 'filename="ink.safetensors"' in answer.headers["content-disposition"]


def test_the_server_is_healthy_within_eight_seconds_and_refuses_strangers(tmp_path: Path):
    port = free_port()
    Workspace.open(tmp_path / "w")
    command = [sys.executable, "-m", "tests.app.pages_only", str(tmp_path / "w"), str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            assert wait_until_healthy(f"http://127.0.0.1:{port}", process) <= 8
            assert _status(port, "127.0.0.1") == 200
            assert _status(port, "evil.example") == 400
        finally:
            process.terminate()
            process.wait(20)


def _status(port: int, host: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest("GET", "/", skip_host=True)
    connection.putheader("Host", f"{host}:{port}")
    connection.endheaders()
    try:
        return connection.getresponse().status
    finally:
        connection.close()


def test_loopback_is_known():
    assert all(server.is_loopback(name) for name in LOOPBACK)
    assert not server.is_loopback("0.0.0.0")
