"""Zips: read in memory, member by member; what is wrong with a member never stops the others."""

import stat
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from registry.errors import BadInput
from studio.datasets import zips
from studio.datasets.zips import is_zip, open_zip
from tests.support.pictures import encoded, pixels

PICTURE = encoded(pixels())


def zipped(*members: tuple[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def refused(data: bytes) -> dict[str, str]:
    with open_zip(data, "a.zip") as listing:
        return {error.thing: error.wrong for error in listing.refused}


def test_members_are_listed_and_read():
    data = zipped(("b.png", PICTURE), ("in/a.png", b"x"), ("in/a.txt", b"a cat"), ("folder/", b""))
    with open_zip(data, "a.zip") as listing:
        assert sorted(listing.entries) == ["b.png", "in/a.png", "in/a.txt"]
        assert listing.entries["b.png"].read(10**6) == PICTURE
        assert listing.refused == []


@pytest.mark.parametrize(
    "name", ["../../evil.png", "/etc/evil.png", "a/../../evil.png", "..\\evil.png", "C:\\evil.png"]
)
def test_names_that_point_outside_are_refused(name: str):
    data = zipped((name, PICTURE), ("good.png", PICTURE))
    assert list(refused(data).values()) == ["points outside the zip"]
    with open_zip(data, "a.zip") as listing:
        assert list(listing.entries) == ["good.png"]


def test_links_are_refused():
    link = zipfile.ZipInfo("link.png")
    link.create_system = 3
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert refused(zipped((link, b"/etc/passwd"))) == {"link.png": "is a link or device, not a file"}


def test_nul_in_a_name_is_refused():
    data = zipped(("evilXpng.png", PICTURE)).replace(b"evilXpng.png", b"evil\0png.png")
    assert list(refused(data).values()) == ["has a NUL character in its name"]


def test_the_second_of_two_equal_names_is_refused():
    with pytest.warns(UserWarning, match="Duplicate name"):
        data = zipped(("a.png", PICTURE), ("a.png", b"other"))
    with open_zip(data, "a.zip") as listing:
        assert [error.wrong for error in listing.refused] == ["is in the zip twice under one name"]
        assert len(listing.entries) == 1


def test_an_encrypted_member_is_refused():
    data = bytearray(zipped(("a.png", PICTURE)))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flags in both headers
        data[data.find(signature) + offset] |= 1
    assert refused(bytes(data)) == {"a.png": "is encrypted"}


def test_a_bomb_is_refused_by_what_it_announces():
    data = zipped(("a.png", bytes(200_000_000)), compression=zipfile.ZIP_DEFLATED)
    assert len(data) < 200_000
    with pytest.raises(BadInput, match=r"a\.zip: would grow from 195 kB to 200 MB"), open_zip(data, "a.zip"):
        pass


def test_a_bomb_that_lies_about_its_size_gives_no_more_than_it_said():
    """The size in both headers is set to 1000; 30 MB come out of the compressed stream."""
    data = bytearray(zipped(("a.png", bytes(30_000_000)), compression=zipfile.ZIP_DEFLATED))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.find(signature) + offset
        data[at : at + 4] = (1000).to_bytes(4, "little")
    with open_zip(bytes(data), "a.zip") as listing:
        read = listing.entries["a.png"].read
        with pytest.raises(BadInput, match=r"a\.png: is damaged inside the zip"):
            read(10**9)


def test_too_many_members_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(zips, "MAX_MEMBERS", 3)
    data = zipped(*((f"{i}.png", b"x") for i in range(4)))
    with pytest.raises(BadInput, match="holds 4 files, more than 3"), open_zip(data, "a.zip"):
        pass


def test_damaged_zips_and_members():
    whole = zipped(("a.png", PICTURE), ("b.png", PICTURE))
    with pytest.raises(BadInput, match=r"a\.zip: is damaged"), open_zip(whole[:-30], "a.zip"):
        pass
    with pytest.raises(BadInput, match=r"a\.zip: is empty"), open_zip(b"", "a.zip"):
        pass
    bent = bytearray(whole)
    bent[whole.find(PICTURE) + 50] ^= 0xFF  # the CRC of a.png no longer fits
    with open_zip(bytes(bent), "a.zip") as listing:
        with pytest.raises(BadInput, match=r"a\.png: is damaged inside the zip"):
            listing.entries["a.png"].read(10**6)
        assert listing.entries["b.png"].read(10**6) == PICTURE


def test_a_member_above_the_limit_is_not_read():
    with open_zip(zipped(("a.png", bytes(3_000_000))), "a.zip") as listing:
        read = listing.entries["a.png"].read
        with pytest.raises(BadInput, match=r"a\.png: has 3 MiB, more than 1 MiB"):
            read(2**20)


def test_what_systems_leave_behind_is_not_mentioned():
    data = zipped(("__MACOSX/._a.png", b"x"), (".DS_Store", b"x"), ("Thumbs.db", b"x"), ("a.png", PICTURE))
    with open_zip(data, "a.zip") as listing:
        assert list(listing.entries) == ["a.png"]
        assert listing.refused == []


def test_what_counts_as_a_zip(tmp_path: Path):
    assert is_zip(zipped(("a", b""))[:4], "noname")
    assert is_zip(b"", "broken.ZIP")
    assert not is_zip(PICTURE[:4], "a.png")
    (tmp_path / "a.zip").write_bytes(zipped(("a.png", PICTURE)))
    with open_zip(tmp_path / "a.zip", "a.zip") as listing:
        assert listing.entries["a.png"].read(10**6) == PICTURE
