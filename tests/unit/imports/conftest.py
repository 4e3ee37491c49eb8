"""An empty workspace, a folder to take in, and a site to fetch from."""

import http.server
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

from studio.imports import fetch
from studio.imports.network import Network
from studio.workspace import Workspace
from tests.support.debian import need
from tests.support.imports import write_adapter
from tests.support.site import Site


@pytest.fixture
def ws(tmp_path):
    return Workspace.open(tmp_path / "home")


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "loras"
    made.mkdir()
    return made


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """A certificate of our own for the names of the sites."""
    need("openssl")
    path = tmp_path_factory.mktemp("certificate") / "both.pem"
    names = "DNS:huggingface.co,DNS:*.huggingface.co,DNS:*.xethub.hf.co,DNS:civitai.com,DNS:*.civitai.com"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    command += ["-days", "2", "-subj", "/CN=test", "-addext", f"subjectAltName={names}"]
    subprocess.run([*command, "-keyout", str(path), "-out", f"{path}.crt"], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


@pytest.fixture
def site(certificate, monkeypatch):
    """The server, and a network that finds every name at it."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    trusting = ssl.create_default_context(cafile=str(certificate))
    places = [("127.0.0.1", server.server_address[1])]
    network = Network(lambda _host: places, lambda address: address == "127.0.0.1", trusting)
    monkeypatch.setattr(fetch, "NETWORK", network)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("CIVITAI_TOKEN", raising=False)
    Site.pages.clear()
    Site.asked.clear()
    Site.ranges.clear()
    Site.cuts.clear()
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    yield network
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def data(tmp_path) -> bytes:
    return write_adapter(tmp_path / "source" / "x.safetensors").read_bytes()
