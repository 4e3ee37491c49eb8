"""Adapters by address: a local https server stands for the sites, and everything else is refused."""

import pytest

from registry.errors import BadInput, StudioError
from registry.records import Adapter
from studio.imports import fetch
from studio.imports.fetch import check_address
from studio.imports.network import Network, is_public
from studio.imports.submit import submit
from tests.support.imports import finish, take_in, write_adapter
from tests.support.site import HF, Site, get, redirect


def test_a_file_comes_through_a_redirect_and_the_token_stays_with_its_host(site, ws, data, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("CIVITAI_TOKEN", "other")
    Site.pages |= {
        ("huggingface.co", "/me/ink/resolve/main/ink.safetensors"): redirect(
            "https://cas-bridge.xethub.hf.co/abc?Signature=1"
        ),
        ("cas-bridge.xethub.hf.co", "/abc?Signature=1"): (
            200, {"Content-Disposition": 'attachment; filename="../../e/vil.safetensors"'}, data,
        ),
    }  # fmt: skip
    path = get(ws, HF.replace("/resolve/", "/blob/"))
    assert path == ws.home / "inbox" / "f" / "vil.safetensors"
    assert path.read_bytes() == data
    tokens = {host: token for host, _, token in Site.asked}
    assert tokens == {"huggingface.co": "Bearer hf_secret", "cas-bridge.xethub.hf.co": ""}


def test_an_address_is_imported(site, ws, data, monkeypatch):
    Site.pages[("huggingface.co", "/me/ink/resolve/main/ink.safetensors")] = (200, {}, data)
    job = submit(ws, [HF], tags=["web"])
    report = finish(ws, job)
    assert (report.listed, report.hashed, report.bad) == (1, 1, [])
    row = ws.catalog.get(Adapter, "ink")
    assert (row.source, row.path, row.tags) == (HF, f"adapters/{row.id}.safetensors", ("web",))
    assert ws.resolve(row.path).read_bytes() == data
    assert list((ws.home / "inbox").iterdir()) == []
    asked = len(Site.asked)
    finish(ws, job)
    assert len(Site.asked) == asked, "a restarted import does not download again"


def test_one_address_that_fails_stops_nothing(site, ws, data, tmp_path):
    report = take_in(ws, HF, write_adapter(tmp_path / "a.safetensors", 3))
    assert report.bad == [(HF, f"{HF}: is not there (404). check the address.")]
    assert report.listed == 1


@pytest.mark.parametrize(
    ("address", "wrong"),
    [
        ("http://huggingface.co/x", "is not an https address"),
        ("file:///etc/passwd", "is not an https address"),
        ("ftp://civitai.com/x", "is not an https address"),
        ("https://127.0.0.1/x", "is not among the sites"),
        ("https://169.254.169.254/latest/meta-data", "is not among the sites"),
        ("https://[::1]/x", "is not among the sites"),
        ("https://evil.example/huggingface.co/x", "is not among the sites"),
        ("https://huggingface.co.evil.example/x", "is not among the sites"),
        ("https://huggingface.co@evil.example/x", "a user, a password or a port"),
        ("https://me:pw@huggingface.co/x", "a user, a password or a port"),
        ("https://huggingface.co:8443/x", "a user, a password or a port"),
        ("https://huggingface.co/\r\nX: y", "characters that no address has"),
        ("https://civitai.com/api/download/models/1?token=secret", "carries a token"),
        ("https://civitai.com/models/12/name", "is the page of all versions"),
        ("https://[half", "is no address"),
    ],
)
def test_other_addresses_are_refused_before_anything_is_asked(ws, address, wrong):
    with pytest.raises(BadInput, match=wrong) as caught:
        submit(ws, [address])
    assert "secret" not in str(caught.value)
    assert "pw" not in str(caught.value)


def test_pages_become_the_files_that_they_show():
    found = check_address("https://civitai.com/models/12/name?modelVersionId=34")
    assert (found.path, found.query) == ("/api/download/models/34", "")
    found = check_address("https://huggingface.co/me/x/blob/main/a.safetensors?download=true#top")
    assert (found.path, found.query, found.fragment) == (
        "/me/x/resolve/main/a.safetensors",
        "download=true",
        "",
    )


@pytest.mark.parametrize(
    ("to", "wrong"),
    [
        ("https://evil.example/x", "where we do not load from"),
        ("http://huggingface.co/x", "is not an https address"),
        ("https://127.0.0.1/x", "where we do not load from"),
        ("file:///etc/passwd", "is not an https address"),
        ("https://civitai.com.evil.example/x", "where we do not load from"),
        ("/login?returnUrl=x", "is not given to everybody"),
        (HF, "leads on more than 5 times"),
    ],
)
def test_a_redirect_to_elsewhere_is_refused(site, ws, to, wrong):
    Site.pages[("huggingface.co", "/me/ink/resolve/main/ink.safetensors")] = redirect(to)
    with pytest.raises(BadInput, match=wrong):
        get(ws)
    assert {host for host, _, _ in Site.asked} == {"huggingface.co"}


PRIVATE = (
    "127.0.0.1", "10.0.0.7", "169.254.169.254", "::1", "fe80::1%eth0", "::ffff:192.168.0.1", "100.64.0.1",
    "0.0.0.0", "224.0.0.1", "odd",
)  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_a_site_at_an_address_that_is_not_public_is_not_asked(ws, monkeypatch, address):
    assert not is_public(address)
    places = [("151.101.0.1", 443), (address, 443)]
    monkeypatch.setattr(fetch, "NETWORK", Network(lambda _host: places))
    with pytest.raises(BadInput, match="which is no public address"):
        get(ws)


def test_public_addresses_are_public():
    assert is_public("151.101.0.1")
    assert is_public("2a04:4e42::81")


def test_a_certificate_of_somebody_else_is_refused(site, ws, monkeypatch):
    strict = Network(site.resolve, site.allowed)
    monkeypatch.setattr(fetch, "NETWORK", strict)
    with pytest.raises(StudioError, match="cannot be reached"):
        get(ws)


def test_what_is_too_large_or_cut_off_leaves_nothing(site, ws, data, monkeypatch):
    place = ("huggingface.co", "/me/ink/resolve/main/ink.safetensors")
    Site.pages[place] = (200, {"Content-Length": str(20 * 2**30)}, b"x")
    with pytest.raises(BadInput, match="more than 16 GiB"):
        get(ws)
    Site.pages[place] = (200, {"Content-Length": str(len(data) + 50)}, data)
    with pytest.raises(StudioError, match=r"was cut off|broke off"):
        get(ws)
    monkeypatch.setattr(fetch, "MAX_BYTES", 1000)
    Site.pages[place] = (200, {}, data)
    with pytest.raises(BadInput, match="more than"):
        get(ws)
    assert [path for path in (ws.home / "inbox").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(("status", "wrong"), [(401, "HF_TOKEN"), (403, "HF_TOKEN"), (404, "is not there")])
def test_what_the_site_refuses_is_said(site, ws, status, wrong):
    Site.pages[("huggingface.co", "/me/ink/resolve/main/ink.safetensors")] = (status, {}, b"")
    with pytest.raises(BadInput, match=wrong):
        get(ws)
