"""Filters, pages by keyset, facets, many at once and saved filters: the same over both databases."""

import base64
import json
from datetime import UTC, datetime, timedelta
from itertools import product

import pytest

from registry import finding, fulltext, paging
from registry.errors import BadInput
from registry.paging import SORTS
from registry.records import Adapter, FileState, SavedFilter
from registry.search import UNIDENTIFIED, AdapterQuery
from tests.support import records
from tests.support.records import open_catalog

DAY = datetime(2026, 3, 1, tzinfo=UTC)


def at(hours):
    return DAY + timedelta(hours=hours)


def sixty(catalog):
    """Sixty adapters; number n has properties that follow from n."""
    catalog.add_all(
        [
            records.adapter(
                n,
                name=f"Wash {n:02d}" if n % 3 else f"ink {n % 9} line",
                tags=("Ink", f"t{n % 4}") if n % 2 else (),
                trigger_words=("zibbo", f"w{n % 5}"),
                note="paper and water" if n % 7 == 0 else "",
                family=("sd15", "sdxl", "")[n % 3],
                method=("lora", "lokr")[n % 2],
                origin=("run", "import")[n % 4 == 0],
                rank=4 * (n % 4 + 1),
                rating=n % 6,
                favourite=n % 10 == 0,
                preview="a.png" if n % 5 else "",
                licence="cc0" if n % 6 == 0 else "",
                size=1000 * (n % 8),
                file_state=FileState.MISSING if n == 7 else FileState.OK,
                created_at=at(n // 2),
                trashed_at=DAY if n in {11, 12} else None,
            )
            for n in range(60)
        ]
    )
    return catalog


@pytest.fixture
def many(catalog):
    return sixty(catalog)


def numbers(adapters):
    return [int(adapter.tensor_sha256[1:]) for adapter in adapters]


KEPT = [n for n in range(60) if n not in {11, 12}]


FILTERS = [
        ({"family": "sd15"}, lambda n: n % 3 == 0),
        ({"family": UNIDENTIFIED}, lambda n: n % 3 == 2),
        ({"method": "lokr"}, lambda n: n % 2 == 1),
        ({"origin": "import"}, lambda n: n % 4 == 0),
        ({"tags": ("INK", "t3")}, lambda n: n % 4 == 3),
        ({"tags": ("in",)}, lambda _: False),
        ({"trigger": "W2"}, lambda n: n % 5 == 2),
        ({"trigger": "w2", "tags": ("t1",), "query": "wash"}, lambda n: n % 5 == 2 and n % 4 == 1 and n % 3),
        ({"min_rank": 8, "max_rank": 12}, lambda n: n % 4 in {1, 2}),
        ({"min_rating": 4}, lambda n: n % 6 >= 4),
        ({"favourite": True}, lambda n: n % 10 == 0),
        ({"favourite": False}, lambda n: n % 10 != 0),
        ({"has_preview": False}, lambda n: n % 5 == 0),
        ({"has_preview": True, "has_licence": True}, lambda n: n % 5 and n % 6 == 0),
        ({"has_licence": False, "min_size": 6000}, lambda n: n % 6 and n % 8 >= 6),
        ({"max_size": 0}, lambda n: n % 8 == 0),
        ({"since": at(10), "until": at(12)}, lambda n: n // 2 in {10, 11}),
        ({"file_state": "missing"}, lambda n: n == 7),
        ({"query": "water", "family": "sdxl"}, lambda n: n % 7 == 0 and n % 3 == 1),
        ({"query": "w", "min_rating": 5}, lambda n: n % 6 == 5),
        ({"base_id": "none"}, lambda _: False),
]  # fmt: skip


def test_each_filter_finds_what_fits_it(many):
    for asked, fits in FILTERS:
        finds(many, asked, fits)


def finds(many, asked, fits):
    expected = sorted((n for n in KEPT if fits(n)), reverse=True)
    page = many.search_adapters(**asked)
    assert sorted(numbers(page.adapters), reverse=True) == expected, asked
    assert (page.total, page.next, page.capped) == (len(expected), "", False)
    assert many.count_adapters(**asked) == len(expected)
    assert len(many.adapter_ids(**asked)) == len(expected)
    stored = json.loads(json.dumps(AdapterQuery(**asked).to_json()))
    assert AdapterQuery.from_json(stored) == AdapterQuery(**asked)


def test_without_an_index_of_words_the_answers_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(fulltext, "available", lambda _: False)
    catalog = sixty(open_catalog(tmp_path))
    for asked, fits in FILTERS:
        finds(catalog, asked, fits)
    catalog.delete(Adapter, catalog.adapter_ids("wash")[0])
    assert catalog.adapter_facets("wash", family="sdxl").tag["ink"] > 0


SEARCHES = [{}, {"query": "wash"}, {"query": "wa"}, {"family": "sdxl", "query": "a"}]


def test_pages_follow_each_other_without_gap_or_repetition(many):
    for sort, asked in product(SORTS, SEARCHES):
        pages(many, sort, asked)


def pages(many, sort, asked):
    whole = many.search_adapters(**asked, sort=sort, limit=100)
    seen, after = [], ""
    while True:
        page = many.search_adapters(**asked, sort=sort, limit=7, after=after)
        seen += page.adapters
        assert page.total == whole.total
        assert len(page.adapters) == 7 or not page.next
        if not (after := page.next):
            break
    assert seen == whole.adapters
    assert len(seen) == whole.total > 7


def test_a_page_stays_in_place_while_others_come_and_go(many):
    first = many.search_adapters(limit=5)
    many.add(records.adapter(100, created_at=DAY + timedelta(days=90)))
    many.delete(Adapter, first.adapters[2].id)
    second = many.search_adapters(limit=5, after=first.next)
    assert numbers(second.adapters) == [54, 53, 52, 51, 50] or len(set(numbers(second.adapters))) == 5
    assert not set(numbers(first.adapters)) & set(numbers(second.adapters))


def pack(*parts):
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()


CURSORS = ["nonsense", "ä", "====", pack(), pack("newest"), pack("size", 1, "x"),
           pack("newest", "yesterday", "x"), pack("newest", "2026-01-01T00:00:00", "x"),
           pack("newest", 5, "x"), pack("newest", None, None)]  # fmt: skip


def test_a_cursor_of_something_else_is_refused(many):
    for cursor in CURSORS:
        with pytest.raises(BadInput, match="cursor: does not belong to this search"):
            many.search_adapters(after=cursor)


def test_a_number_no_database_holds_is_refused_in_a_cursor(many):
    with pytest.raises(BadInput, match="does not belong"):
        many.search_adapters(sort="size", after=pack("size", 2**70, "x"))


def test_the_best_match_has_the_word_in_its_name(catalog):
    catalog.add_all(
        [
            records.adapter(1, name="lines", note="like ink on paper"),
            records.adapter(2, name="my ink lines"),
            records.adapter(3, name="ink"),
            records.adapter(4, name="drawing", tags=("inks",)),
            records.adapter(5, name="ink lines"),
            records.adapter(6, name="drinking"),
        ]
    )
    assert numbers(catalog.search_adapters("ink", sort="best").adapters) == [3, 5, 2, 4, 6, 1]
    assert numbers(catalog.search_adapters("in", sort="best").adapters) == [6, 5, 4, 3, 2, 1], (
        "too short to rank"
    )


def test_too_many_hits_are_not_ranked(many, monkeypatch):
    monkeypatch.setattr(paging, "RANKED", 10)
    newest = many.search_adapters("wash", limit=5)
    assert many.search_adapters("wash", sort="best", limit=5) == newest
    second = many.search_adapters("wash", sort="best", limit=5, after=newest.next)
    assert second == many.search_adapters("wash", limit=5, after=newest.next)


def test_short_words_are_found_beyond_the_rows_that_are_glanced_at(many, monkeypatch):
    monkeypatch.setattr(finding, "GLANCE", 10)
    page = many.search_adapters("wa", limit=3)
    assert len(page.adapters) == 3
    assert page.capped == (page.total < many.count_adapters("wa"))
    everything = many.search_adapters("wa", limit=60)
    assert (everything.total, everything.capped) == (many.count_adapters("wa"), False)
    assert numbers(many.search_adapters("7", limit=60).adapters)[-1] == 7


def test_short_words_in_dense_hits_are_those_of_a_walk_past_all(many, monkeypatch):
    asked = [{"query": "wa ash"}, {"query": "w", "family": "sdxl"}, {"query": "i ink", "tags": ("ink",)}]
    searches = [*product(SORTS, asked)]
    monkeypatch.setattr(finding, "GLANCE", 6)
    walked = [many.search_adapters(**asked, sort=sort, limit=3) for sort, asked in searches]
    monkeypatch.setattr(finding, "DENSE", 0)
    for near in (5, 20, 50):
        monkeypatch.setattr(finding, "NEAR", near)
        assert [many.search_adapters(**asked, sort=sort, limit=3) for sort, asked in searches] == walked


def held(fits):
    return len([n for n in KEPT if fits(n)])


def test_facets_count_hits_and_leave_their_own_filter_out(many):
    facets = many.adapter_facets()
    assert facets.method == {"lora": held(lambda n: n % 2 == 0), "lokr": held(lambda n: n % 2)}
    assert facets.tag["ink"] == held(lambda n: n % 2)
    narrowed = many.adapter_facets("wash", family="sdxl")
    assert narrowed.family == {"": held(lambda n: n % 3 == 2), "sdxl": held(lambda n: n % 3 == 1)}
    assert sum(narrowed.method.values()) == narrowed.family["sdxl"]
    assert narrowed.tag["ink"] == held(lambda n: n % 3 == 1 and n % 2)
    assert many.adapter_facets(trashed=True).tag == {"ink": 1, "t3": 1}
    assert many.adapter_facets("w").rough
    assert many.adapter_facets("w").family == facets.family


def test_pages_of_many_hits_are_those_of_few(many, monkeypatch):
    searches = [*product(SORTS, [*SEARCHES, {"query": "nothing"}, {"tags": ("ink",), "trigger": "zibbo"}])]
    few = [many.search_adapters(**asked, sort=sort, limit=7) for sort, asked in searches]
    monkeypatch.setattr(finding, "FEW", 0)
    assert [many.search_adapters(**asked, sort=sort, limit=7) for sort, asked in searches] == few


def test_pages_of_hits_that_are_met_on_a_walk_are_those_of_hits_put_down(many, monkeypatch):
    found = [{**asked, "query": "wash"} for asked, _ in FILTERS[::4]] + SEARCHES
    searches = [*product(SORTS, found)]
    put_down = [many.search_adapters(**asked, sort=sort, limit=3) for sort, asked in searches]
    monkeypatch.setattr(finding, "MANY", 0)
    for met in (4, 1000):
        monkeypatch.setattr(finding, "MET", met)
        assert [many.search_adapters(**asked, sort=sort, limit=3) for sort, asked in searches] == put_down
    for asked in SEARCHES:
        pages(many, "newest", asked)


def test_facets_follow_what_is_changed(many):
    before = many.adapter_facets("wash").family
    changed, deleted, binned = many.adapter_ids("wash", family="sdxl")[:3]
    many.update(Adapter, changed, family="flux1", method="dora", origin="merge")
    many.update_many(Adapter, [binned], trashed_at=DAY)
    many.delete(Adapter, deleted)
    after = many.adapter_facets("wash")
    assert after.family == {**before, "sdxl": before["sdxl"] - 3, "flux1": 1}
    assert (after.method["dora"], after.origin["merge"]) == (1, 1)
    assert many.adapter_facets("wash", trashed=True).family["sdxl"] >= 1


def test_tags_of_all_adapters_are_counted_like_those_of_a_search(many):
    many.add(records.adapter(100, tags=("Ink", "ink", "fine line"), rating=5))
    everything = many.adapter_facets()
    assert everything.tag == many.adapter_facets(until=at(10**5)).tag
    assert everything.tag["ink"] == held(lambda n: n % 2) + 1
    assert everything.tag["fine line"] == 1


def test_many_are_changed_in_one_go_and_found_by_what_is_new(many):
    ids = many.adapter_ids("wash", family="sdxl")
    assert many.update_many(Adapter, [*ids, "nobody"], rating=5) == len(ids)
    assert many.count_adapters(min_rating=5, family="sdxl") >= len(ids)
    assert many.update_many(Adapter, ids, note="Äpfel", metadata={"a": 1}) == len(ids)
    assert set(many.adapter_ids("äpf")) == set(ids)
    assert many.get(Adapter, ids[0]).metadata == {"a": 1}
    assert many.update_many(Adapter, [], rating=1) == 0
    with pytest.raises(TypeError, match="no field nonsense"):
        many.update_many(Adapter, ids, nonsense=1)


def test_tags_are_given_and_taken(many):
    ids = many.adapter_ids(tags=("t1",))
    assert many.tag_adapters(ids, add=["new", "Ink"], remove=["t1"]) == len(ids)
    assert many.get(Adapter, ids[0]).tags == ("Ink", "new")
    assert many.count_adapters(tags=("t1",)) == 0
    assert many.count_adapters("new", tags=("NEW",)) == many.adapter_facets().tag["new"] == len(ids)
    assert many.tag_adapters(ids, add=["new"]) == 0, "nothing to change"


def test_what_is_deleted_leaves_no_words_and_tags(many):
    for id in many.adapter_ids(tags=("ink",)):
        many.delete(Adapter, id)
    assert many.search_adapters("ink", tags=("ink",)).total == 0
    assert set(many.adapter_facets().tag) == set()
    assert many.check() == "ok"


def test_a_filter_is_kept_under_a_name(many):
    wanted = AdapterQuery(query="wash", tags=("ink",), since=DAY, favourite=False)
    many.add(SavedFilter(name="mine", query=wanted.to_json()))
    assert AdapterQuery.from_json(many.get(SavedFilter, "mine").query) == wanted
    for bad in ({"nonsense": 1}, {"tags": "ink"}, {"min_rank": "4"}, {"min_rank": True}, {"query": 5},
                {"since": "2026-01-01"}, {"since": 1}, {"favourite": "yes"}):  # fmt: skip
        with pytest.raises(BadInput, match="filter field"):
            AdapterQuery.from_json(bad)


TYPED = ['"', '""', "'", "AND", "a OR", "NEAR(", "search:x", "-", "*", "a*", "(", ")", "^", "{", "+", ":",
         "\0", "a\0b", ";--", "\\", "%", "_", "\n\n", "\u200b", "😀", "ﷺ", "x" * 5000, "a b " * 3000,
         '"a" + "b"']  # fmt: skip


def test_nothing_that_is_typed_is_an_error(many):
    for typed in TYPED:
        many.search_adapters(typed)
        many.search_adapters(tags=(typed,), trigger=typed, sort="best")
        many.adapter_facets(typed)
