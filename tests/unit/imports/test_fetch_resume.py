"""Downloads that end early go on where they were, and only with bytes of the same file."""

import pytest

from registry.errors import BadInput, StudioError
from studio.imports import fetch
from studio.imports.submit import submit
from tests.support.imports import finish
from tests.support.site import HF, Site, get, redirect

PLACE = ("huggingface.co", "/me/ink/resolve/main/ink.safetensors")


def kept(ws):
    return sorted(path.suffix for path in (ws.home / "cache" / "downloads").glob("*"))


def left(ws):
    return [path for path in (ws.home / "inbox").rglob("*") if path.is_file()]


@pytest.mark.parametrize("sign", [{"ETag": '"v1"'}, {"Last-Modified": "Sat, 01 Aug 2026 10:00:00 GMT"}])
def test_a_connection_that_breaks_goes_on_where_it_was(sign, site, ws, data):
    Site.pages[PLACE] = (200, {"Accept-Ranges": "bytes", **sign}, data)
    Site.cuts[:] = [1000, 500]
    assert get(ws).read_bytes() == data
    assert Site.ranges == ["", "bytes=1000-", "bytes=1500-"]
    assert kept(ws) == []


def test_what_came_is_kept_for_the_next_try(site, ws, data, monkeypatch):
    monkeypatch.setattr(fetch, "RETRIES", 0)
    Site.pages[PLACE] = (200, {"Accept-Ranges": "bytes", "ETag": '"v1"'}, data)
    Site.cuts[:] = [3000]
    with pytest.raises(StudioError, match=r"(broke|cut) off.*try again; it goes on after 0\.0 MiB"):
        get(ws)
    assert (kept(ws), left(ws)) == ([".json", ".part"], [])
    assert get(ws).read_bytes() == data
    assert Site.ranges == ["", "bytes=3000-"]
    assert kept(ws) == []


def test_a_killed_download_goes_on_from_what_is_on_the_disk_for_certain(site, ws, data, monkeypatch):
    """What came after the last sync is asked for again: a power cut may have left a hole there."""
    monkeypatch.setattr(fetch, "RETRIES", 0)
    Site.pages[PLACE] = (200, {"Accept-Ranges": "bytes", "ETag": '"v1"'}, data)
    Site.cuts[:] = [3000]
    with pytest.raises(StudioError):
        get(ws)
    (part,) = (ws.home / "cache" / "downloads").glob("*.part")
    part.write_bytes(part.read_bytes() + b"\0" * 700)
    assert get(ws).read_bytes() == data
    assert Site.ranges[-1] == "bytes=3000-"


def test_another_file_is_fetched_anew(site, ws, data, monkeypatch):
    monkeypatch.setattr(fetch, "RETRIES", 0)
    Site.pages[PLACE] = (200, {"Accept-Ranges": "bytes", "ETag": '"v1"'}, b"x" * 5000)
    Site.cuts[:] = [3000]
    with pytest.raises(StudioError):
        get(ws)
    Site.pages[PLACE] = (200, {"Accept-Ranges": "bytes", "ETag": '"v2"'}, data)
    assert get(ws).read_bytes() == data
    assert Site.ranges == ["", "bytes=3000-"]


@pytest.mark.parametrize("sent", [{"Content-Range": "bytes 0-9/10"}, {"ETag": '"v2"'}])
def test_a_site_that_gives_another_part_is_asked_for_all(sent, site, ws, data, monkeypatch):
    Site.pages[PLACE] = (200, {"Accept-Ranges": "bytes", "ETag": '"v1"'}, data)
    Site.cuts[:] = [3000]
    real = fetch._open

    def lying(parts, wanted):
        parts, response = real(parts, wanted)
        if wanted:
            for name, value in sent.items():
                response.headers.replace_header(name, value)
        return parts, response

    monkeypatch.setattr(fetch, "_open", lying)
    assert get(ws).read_bytes() == data
    assert Site.ranges == ["", "bytes=3000-", ""]


def test_a_file_that_became_shorter_is_asked_for_all(site, ws, data, monkeypatch):
    monkeypatch.setattr(fetch, "RETRIES", 0)
    Site.pages[PLACE] = (200, {"Accept-Ranges": "bytes", "ETag": '"v1"'}, data + b"x" * 4000)
    Site.cuts[:] = [len(data) + 2000]
    with pytest.raises(StudioError):
        get(ws)
    Site.pages[PLACE] = (200, {"Accept-Ranges": "bytes", "ETag": '"v1"'}, data)
    assert get(ws).read_bytes() == data


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"v1"'}, {"ETag": '"v1"'}])
def test_a_site_without_ranges_or_signs_is_asked_for_all(headers, site, ws, data, monkeypatch):
    monkeypatch.setattr(fetch, "RETRIES", 0)
    Site.pages[PLACE] = (200, headers, data)
    Site.cuts[:] = [3000]
    with pytest.raises(StudioError):
        get(ws)
    assert kept(ws) == ([".json", ".part"] if headers == {"ETag": '"v1"'} else [])
    assert get(ws).read_bytes() == data
    assert kept(ws) == []


def test_the_cap_on_size_counts_what_is_here_already(site, ws, data, monkeypatch):
    monkeypatch.setattr(fetch, "RETRIES", 0)
    Site.pages[PLACE] = (200, {"Accept-Ranges": "bytes", "ETag": '"v1"'}, data)
    Site.cuts[:] = [3000]
    with pytest.raises(StudioError):
        get(ws)
    monkeypatch.setattr(fetch, "MAX_BYTES", 4000)
    with pytest.raises(BadInput, match="more than"):
        get(ws)
    assert left(ws) == []


def test_a_redirect_to_elsewhere_is_refused_in_the_middle_too(site, ws, data, monkeypatch):
    monkeypatch.setattr(fetch, "RETRIES", 0)
    Site.pages[PLACE] = (200, {"Accept-Ranges": "bytes", "ETag": '"v1"'}, data)
    Site.cuts[:] = [3000]
    with pytest.raises(StudioError):
        get(ws)
    Site.pages[PLACE] = redirect("https://example.com/x.safetensors")
    with pytest.raises(BadInput, match="where we do not load from"):
        get(ws)


def test_an_import_that_was_killed_after_the_download_does_not_fetch_again(site, ws, data, monkeypatch):
    Site.pages[PLACE] = (200, {}, data)
    job = submit(ws, [HF])

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("studio.imports.task.Lister", killed)
        with pytest.raises(KeyboardInterrupt):
            finish(ws, job)
    assert finish(ws, job).listed == 1
    assert Site.ranges == [""]
