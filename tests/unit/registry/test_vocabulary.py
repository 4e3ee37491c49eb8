"""A part of a word finds what the word finds: parts and whole words asked for, and every text read."""

import random
import sqlite3
from contextlib import closing

import pytest

from registry import fulltext, journal, schema, vocabulary
from registry.records import Adapter, now
from registry.vocabulary import telling
from tests.support import records
from tests.support.records import open_catalog

STEMS = ("watercolor", "papercut", "colours", "ßtraße", "Ǆungla", "水彩画の練習", "ｗｉｄｅ", "e\u0301tude",
         "نستعلیق", "a\u2028bcd", "x\u00a0yzzy", "😀😁😂😃", "画water", "ﬃne", "it's", '"ink"', "50%",
         "back\\slash", "a\ue000bcde")  # fmt: skip
BETWEEN = ("", "", " ", "-", "_", "2", "/", "\t", ", ", "\n", "'")


def text(draw, most):
    return "".join(draw.choice(STEMS) + draw.choice(BETWEEN) for _ in range(draw.randint(1, most)))


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A catalog whose adapters were changed in every way, and the path of its file."""
    folder, draw = tmp_path_factory.mktemp("words"), random.Random(5)
    catalog = open_catalog(folder)
    made = catalog.add_all(
        [
            records.adapter(n, name=text(draw, 2), tags=(text(draw, 1), "Style"), note=text(draw, 4))
            for n in range(80)
        ]
    )
    for adapter in made[:10]:
        catalog.delete(Adapter, adapter.id)
    for adapter in made[10:20]:
        catalog.update(Adapter, adapter.id, name="renamed " + text(draw, 2), keywords=text(draw, 2))
    catalog.update_many(Adapter, [adapter.id for adapter in made[20:30]], trashed_at=now())
    catalog.tag_adapters([adapter.id for adapter in made[30:40]], add=["taggedlater"], remove=["Style"])
    path = folder / "catalog.sqlite"
    with closing(sqlite3.connect(path)) as other:
        other.execute(
            "UPDATE OR REPLACE adapters SET search = 'replacedtext papercutter' || search WHERE id > ?",
            (made[70].id,),
        )
        other.commit()
    return catalog, path


def words(texts, count):
    """Words that occur, parts of them, and such as nearly do."""
    draw, found = random.Random(6), {"taggedlater", "replacedtext", "renamed", "style", "papercutt"}
    while len(found) < count:
        word = draw.choice([word for word in draw.choice(texts).split() if len(word) > 2])
        start = draw.randrange(len(word) - 2)
        part = word[start : start + draw.randint(3, 14)]
        found.add(part if draw.random() < 0.8 else part[:3] + part[4:] + draw.choice("rx"))
    return sorted(word for word in found if len(word) > 2 and word.split() == [word])


def test_a_part_finds_what_the_word_finds(changed, monkeypatch):
    catalog, path = changed
    with closing(sqlite3.connect(path)) as reader, catalog._read() as session:
        texts = dict(reader.execute("SELECT rowid, search FROM adapters").fetchall())

        def matching(part):
            match = "SELECT rowid FROM adapters_fts WHERE adapters_fts MATCH ?"
            return {rowid for (rowid,) in reader.execute(match, (fulltext.phrase(part),))}

        shorter = 0
        for most in (vocabulary.MOST, 3):
            monkeypatch.setattr(vocabulary, "MOST", most)
            for word in words([*texts.values()], 250):
                part = telling(session, word)
                holding = {rowid for rowid, text in texts.items() if word in text}
                assert matching(word) == holding, word
                assert (matching(part) if part else set()) == holding, (word, part)
                shorter += 0 < len(part) < len(word)
        assert shorter > 100, "else nothing was compared"


def test_the_words_are_those_of_the_texts(changed):
    _, path = changed
    with closing(sqlite3.connect(path)) as reader:
        texts = [row[0] for row in reader.execute("SELECT search FROM adapters")]
        known = {row[0] for row in reader.execute("SELECT word FROM adapter_words")}
        reader.execute("INSERT INTO adapter_words_fts(adapter_words_fts) VALUES ('integrity-check')")
    cut = str.maketrans(dict.fromkeys(fulltext.SEPARATORS, "\n"))
    found = {word for text in texts for word in text.translate(cut).split("\n") if len(word) > 2}
    assert {word for word in found if min(word) <= fulltext.LAST_LETTER} <= known
    assert all(min(word) <= fulltext.LAST_LETTER for word in known), "sentences without a blank would be many"


def test_the_shortest_part_that_tells(tmp_path):
    catalog = open_catalog(tmp_path)
    note = "water papercut, charcoal/colours: floral"
    catalog.add(records.adapter(1, name="Watercolor_style-v3 watercolor2", note=note))
    with catalog._read() as session:
        assert telling(session, "papercut") in {"pap", "ape", "cut"}
        assert telling(session, "watercolor") == "aterc", "others have each run of three"
        assert telling(session, "ter") == "ter"
        assert telling(session, "waterco-") == "waterco-", "signs are in no word"
        assert telling(session, "watercut") == telling(session, "xylophone") == "", "nobody has it"


def test_words_of_a_catalog_from_before_are_known(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(schema, "HEAD", "0008")
        url = journal.parse_url(f"sqlite:///{tmp_path / 'catalog.sqlite'}")
        schema.upgrade(url, None)
        with journal.migration_engine(url).begin() as connection:
            fulltext.drop(connection, "vocabulary")
            connection.exec_driver_sql(
                "INSERT INTO adapters (id, created_at, name, sort_name, search, tag_lines, tensor_sha256, "
                "file_sha256, path, size, family, method, rank, alpha, targets, trigger_words, "
                "recommended_weight, tags, note, rating, origin, step, parents, preview, metadata) VALUES "
                "('a', '2026-01-01 00:00:00', 'Watercolor', 'watercolor', 'watercolor' || char(10, 10), "
                "char(10, 10), 't', 'f', 'p', 1, 'sd15', 'lora', 4, 4.0, '[]', '[]', 1.0, '[]', '', 0, "
                "'run', 0, '[]', '', '{}')"
            )
    catalog = open_catalog(tmp_path)
    assert catalog.count_adapters("atercol") == 1
    assert catalog.count_adapters("papercut") == 0
    catalog.update(Adapter, "a", name="papercut")
    assert (catalog.count_adapters("papercut"), catalog.count_adapters("watercolor")) == (1, 0)
