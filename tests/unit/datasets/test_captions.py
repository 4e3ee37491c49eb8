"""Captions beside pictures, in tables and in names."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.datasets.captions import Captions, CaptionsFrom, as_caption, clean_caption, decode_text, from_name
from studio.datasets.listing import Entry, Listing, list_uploads


def listing(**files: bytes) -> Listing:
    return list_uploads((name.replace("__", "."), data) for name, data in files.items())


def table(*rows: object) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def test_sidecars_win_in_their_order():
    found = Captions(listing(a__png=b"", a__txt=b"from txt", a__caption=b"from caption"))
    assert found.of("a.png") == "from txt"
    assert Captions(listing(a__png=b"", a__caption=b"from caption")).of("a.png") == "from caption"
    assert Captions(listing(a__png=b"", **{"a.png.txt": b"double ending"})).of("a.png") == "double ending"
    assert Captions(listing(a__png=b"", A__TXT=b"loud")).of("a.png") == "loud"
    assert Captions(listing(a__png=b"")).of("a.png") == ""


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("\ufeffein Löwe".encode(), "ein Löwe"),
        ("ein Löwe".encode("utf-16"), "ein Löwe"),
        ("ein Löwe".encode(), "ein Löwe"),
        ("ein Löwe".encode("latin-1"), "ein Löwe"),
    ],
)
def test_encodings(data: bytes, text: str):
    assert decode_text(data)[0] == text


def test_latin_1_is_said():
    files = listing(a__png=b"", a__txt="Löwe".encode("latin-1"))
    found = Captions(files)
    assert found.of("a.png") == "Löwe"
    found.finish()
    assert files.notes == ["caption files that are not UTF-8, read as Latin-1: a.txt"]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("  a cat \r\n", "a cat"),
        ("one\n\n two \n", "one\ntwo"),
        ("a\0 cat\x1b[31m", "a cat[31m"),
        ("<b>cat</b> ![x](http://y)", "<b>cat</b> ![x](http://y)"),  # foreign text stays text
        ("\udc80cat", "?cat"),
    ],
)
def test_cleaning(text: str, clean: str):
    assert clean_caption(text) == clean


@given(st.text())
def test_clean_captions_can_be_stored_and_stay_clean(text: str):
    clean = clean_caption(text)
    assert clean.encode("utf-8").decode() == clean
    assert clean_caption(clean) == clean
    assert "\0" not in clean


def test_what_does_not_fit_together_is_said():
    files = listing(
        a__png=b"",
        a__txt=b"  \n",
        b__txt=b"nobody's",
        metadata__jsonl=table({"file_name": "gone.png", "text": "x"}),
    )
    found = Captions(files)
    assert found.of("a.png") == ""
    found.finish()
    assert files.notes == [
        "caption files without a picture: b.txt",
        "rows of the metadata table without a picture: gone.png",
        "empty caption files: a.txt",
    ]


@pytest.mark.parametrize("column", ["text", "caption", "Prompt"])
def test_metadata_jsonl(column: str):
    files = listing(a__png=b"", metadata__jsonl=table({"file_name": "a.png", column: " a cat\u2028 sits "}))
    assert Captions(files).of("a.png") == "a cat\nsits"


def test_bad_rows_are_named_and_the_others_count():
    lines = table({"file_name": "a.png", "text": "a cat"}) + b'\nno json\n[1]\n{"text": "no name"}\n'
    files = listing(a__png=b"", metadata__jsonl=lines)
    assert Captions(files).of("a.png") == "a cat"
    assert [(error.thing, error.wrong) for error in files.refused] == [
        ("metadata.jsonl line 2", "is not JSON"),
        ("metadata.jsonl line 3", "is not a JSON object"),
        ("metadata.jsonl line 4", "has no file_name"),
    ]


def test_rows_without_a_caption_column_are_said():
    files = listing(a__png=b"", metadata__jsonl=table({"file_name": "a.png", "label": 3}))
    found = Captions(files)
    assert found.of("a.png") == ""
    found.finish()
    assert files.notes == ["rows without a caption column (text, caption, captions, prompt): line 1"]


def test_metadata_csv():
    rows = 'file_name,text\na.png,"a cat, sitting\nand waiting"\nb.png,"a ""dog"""\n'.encode("utf-8-sig")
    found = Captions(listing(a__png=b"", b__png=b"", metadata__csv=rows))
    assert found.of("a.png") == "a cat, sitting\nand waiting"
    assert found.of("b.png") == 'a "dog"'


def test_a_table_counts_from_its_own_folder():
    files = Listing("x")
    files.add(
        Entry("train/metadata.jsonl", lambda _limit: table({"file_name": "sub/a.png", "text": "a cat"}))
    )
    assert Captions(files).of("train/sub/a.png") == "a cat"


def test_a_file_of_its_own_wins_over_the_table_and_that_is_said():
    files = listing(
        a__png=b"", a__txt=b"mine", metadata__jsonl=table({"file_name": "a.png", "text": "theirs"})
    )
    found = Captions(files)
    assert found.of("a.png") == "mine"
    found.finish()
    assert files.notes == ["captions taken from their own file, against the table: a.png"]


def test_a_caption_file_that_is_none_is_refused():
    files = listing(a__png=b"", a__txt=bytes(300 * 1024))
    assert Captions(files).of("a.png") == ""
    assert [error.thing for error in files.refused] == ["a.txt"]


@pytest.mark.parametrize(
    ("name", "source", "caption"),
    [
        ("black_cat-02.png", "file", "black cat"),
        ("a black cat (3).png", "file", "a black cat"),
        ("0007.png", "file", "0007"),
        ("10_sks dog/1.png", "folder", "sks dog"),
        ("my_style/1.png", "folder", "my style"),
        ("1.png", "folder", ""),
        ("a/1.png", "", ""),
    ],
)
def test_names_as_captions(name: str, source: CaptionsFrom, caption: str):
    assert from_name(name, source) == caption


def test_cells():
    assert as_caption(["first", "second"]) == "first"
    assert as_caption([]) == as_caption(None) == as_caption(3) == ""


def test_natural_order():
    expected = ["a/1.png", "IMG1.png", "img02.png", "img2.png", "img10.png"]
    assert Listing.in_order(reversed(expected)) == expected


def test_uploads_keep_the_last_part_of_their_name_and_come_once():
    files = list_uploads([("C:\\x\\a.png", b"1"), ("../../b.png", b"2"), ("a.png", b"3")])
    assert list(files.entries) == ["a.png", "b.png"]
    assert [error.wrong for error in files.refused] == ["came twice in one upload"]
