"""One contract for every kind of record: what goes in comes out, until it is deleted."""

from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.catalog import Catalog
from registry.errors import BadInput, NotFound
from registry.records import (
    Adapter,
    AdapterUse,
    Base,
    Checkpoint,
    Evaluation,
    FileState,
    Image,
    Job,
    JobKind,
    JobState,
    Run,
    RunState,
    Sample,
)
from tests.support import records
from tests.support.records import KINDS, add_one, open_catalog

CHANGES: dict[str, dict[str, Any]] = {
    "Base": {"revision": "abc"},
    "Dataset": {"trigger": "other"},
    "Image": {"caption": "a cat", "tags": ("z",)},
    "Run": {"state": RunState.RUNNING, "process": {"pid": 1}, "started_at": datetime(2026, 1, 2, tzinfo=UTC)},
    "Checkpoint": {"loss": None, "metrics": {"loss": 1.5}},
    "Adapter": {"tags": (), "rating": 5, "metadata": {"a": {"b": None}}},
    "Sample": {"files": ("samples/x/000.png",), "adapters": (AdapterUse(adapter_id="q", text_weight=0.0),)},
    "Job": {"state": JobState.DONE, "result": {"files": 2}},
    "Export": {"report": {"tools": []}},
    "SavedFilter": {"query": {"tag": "x"}},
    "Comparison": {"name": "other", "spec": {"axes": [["seed", [1]]]}},
    "Vote": {"outcome": "left"},
    "Evaluation": {"result": {"points": []}},
    "Watch": {"note": "is not there", "scanned_at": datetime(2026, 1, 2, tzinfo=UTC)},
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_of_record(catalog, kind):
    made = add_one(catalog, kind)
    assert len(made.id) == 10
    assert catalog.get(kind, made.id) == made
    assert catalog.get(kind, made.id[:9]) == made, "a unique prefix is enough"
    assert made in catalog.list(kind)
    assert catalog.count(kind) == len(catalog.list(kind)) >= 1

    change = CHANGES[kind.__name__]
    changed = catalog.update(kind, made.id, **change)
    assert changed == replace(made, **change)
    assert catalog.get(kind, made.id) == changed
    field, value = next(iter(change.items()))
    if not isinstance(value, tuple | dict):
        assert catalog.list(kind, **{field: value}) == [changed]
        assert catalog.list(kind, **{field: (value, value)}) == [changed]

    with pytest.raises(TypeError, match=r"no field nonsense"):
        catalog.update(kind, made.id, nonsense=1)
    catalog.delete(kind, made.id)
    assert catalog.find(kind, made.id) is None
    for action in (lambda: catalog.get(kind, made.id), lambda: catalog.delete(kind, made.id),
                   lambda: catalog.update(kind, made.id, **change)):  # fmt: skip
        with pytest.raises(NotFound, match=r"does not exist"):
            action()


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
JSONS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXT,
    int: st.integers(0, 2**31 - 1),
    float: NUMBERS,
    float | None: st.none() | NUMBERS,
    bool: st.booleans(),
    datetime: st.datetimes(
        datetime(1970, 1, 1),  # noqa: DTZ001  hypothesis wants them naive and adds the zone
        datetime(2200, 1, 1),  # noqa: DTZ001
        timezones=st.sampled_from([UTC, timezone(timedelta(hours=-7))]),
    ),
    tuple[str, ...]: st.lists(TEXT, max_size=3).map(tuple),
    dict[str, Any]: st.dictionaries(TEXT, JSONS, max_size=3),
    RunState: st.sampled_from(RunState),
    FileState: st.sampled_from(FileState),
    JobKind: st.sampled_from(JobKind),
    JobState: st.sampled_from(JobState),
}
VALUES[datetime | None] = st.none() | VALUES[datetime]
VALUES[dict[str, Any] | None] = st.none() | VALUES[dict[str, Any]]
VALUES[tuple[AdapterUse, ...]] = st.lists(
    st.builds(
        AdapterUse, adapter_id=TEXT, weight=NUMBERS, text_weight=VALUES[float | None], tensor_sha256=TEXT
    ),
    max_size=3,
).map(tuple)
REFERENCES = {"id", "base_id", "run_id", "dataset_id", "comparison_id"}
MORE_REFERENCES = {Evaluation: {"adapter_id"}}  # elsewhere it may be of one that is gone


@cache
def with_one(folder: Path, kind: type[Any]) -> tuple[Catalog, Any]:
    """The catalog that all examples of a kind share, and the record that each of them changes anew."""
    catalog = open_catalog(folder)
    return catalog, add_one(catalog, kind)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_values_come_back(tmp_path, kind, data):
    catalog, made = with_one(tmp_path, kind)
    fixed = REFERENCES | MORE_REFERENCES.get(kind, set())
    change = {f.name: data.draw(VALUES[f.type], f.name) for f in fields(kind) if f.name not in fixed}
    changed = catalog.update(kind, made.id, **change)
    assert changed == catalog.get(kind, made.id) == replace(made, **change)
    for f in fields(kind):
        value = getattr(changed, f.name)
        if isinstance(value, datetime):
            assert value.utcoffset() == timedelta(0), "times come back in UTC"


def test_names_of_bases_and_data_sets_are_taken_once(catalog):
    catalog.add(records.base(name="x"))
    with pytest.raises(BadInput, match=r"^name of the base: is taken\. choose another one\.$"):
        catalog.add(records.base(name="x"))
    assert catalog.count(Base) == 1


def test_a_name_finds_and_a_name_of_two_asks_for_an_id(catalog):
    first = catalog.add(records.adapter(1, name="lena"))
    assert catalog.get(Adapter, "lena") == first
    second = catalog.add(records.adapter(2, name="lena"))
    with pytest.raises(BadInput, match=f"not unique .{second.id}, {first.id}."):
        catalog.get(Adapter, "lena")
    catalog.update(Adapter, first.id, trashed_at=datetime(2026, 1, 1, tzinfo=UTC))
    assert catalog.get(Adapter, "lena") == second, "what lies in the trash does not stand in the way"


def test_what_is_missing_is_answered_with_what_there_is(catalog):
    with pytest.raises(NotFound, match=r"^base 'x': does not exist\. there is no base yet\.$"):
        catalog.get(Base, "x")
    catalog.add_all([records.base(name=f"n{i}") for i in range(10)])
    with pytest.raises(NotFound, match=r"there is n9, n8, .* and 2 more"):
        catalog.get(Base, "n")
    with pytest.raises(NotFound, match=r"does not exist"):
        catalog.get(Base, "")


def test_several_records_are_added_all_or_none(catalog):
    with pytest.raises(BadInput, match=r"is taken"):
        catalog.add_all([records.base(name="x"), records.base(name="y"), records.base(name="x")])
    assert catalog.list(Base) == []


def test_references_must_hold(catalog):
    with pytest.raises(BadInput, match=r"refers to one that does not exist"):
        catalog.add(records.run("nobody"))
    base = catalog.add(records.base())
    run = catalog.add_run(records.run(base.id))
    made, _ = catalog.register_adapter(records.adapter(run_id=run.id, base_id=base.id))
    catalog.add(Sample(base_id=base.id, request={}))
    with pytest.raises(BadInput, match=r"is used by 1 run and 1 adapter and 1 sample"):
        catalog.delete(Base, base.id)
    with pytest.raises(BadInput, match=r"is used by 1 adapter"):
        catalog.delete(Run, run.id)
    catalog.delete(Adapter, made.id)
    catalog.delete(Run, run.id)
    assert catalog.list(Job) == [], "a run takes its queued job along"


def test_a_run_that_is_worked_on_stays(catalog):
    run = catalog.add_run(records.run(catalog.add(records.base()).id))
    catalog.claim_job([JobKind.TRAIN], owner="w", lease=timedelta(seconds=30))
    with pytest.raises(BadInput, match=r"is being worked on. stop it first"):
        catalog.delete(Run, run.id)


def test_a_run_takes_its_checkpoints_along(catalog):
    made = add_one(catalog, Checkpoint)
    catalog.delete(Run, made.run_id)
    assert catalog.list(Checkpoint) == []


def test_a_data_set_goes_though_a_run_used_it(catalog):
    made = catalog.add_dataset(records.Dataset(name="d"), [records.image(n) for n in range(3)])
    run = catalog.add(
        records.run(catalog.add(records.base()).id, dataset_id=made.id, dataset_hash=made.content_hash)
    )
    catalog.delete(records.Dataset, made.id)
    assert catalog.list(Image) == []
    assert catalog.get(Run, run.id).dataset_hash == made.content_hash


def test_pictures_of_a_data_set_keep_their_order(catalog):
    made = catalog.add_dataset(records.Dataset(name="d"), [records.image(n) for n in (5, 3, 4)])
    images = catalog.list(Image, dataset_id=made.id)
    assert [i.pixel_hash for i in images] == ["p5", "p3", "p4"]
    assert [i.position for i in images] == [0, 1, 2]
    assert made.image_count == 3

    again = catalog.replace_images(made.id, [images[2], images[0]])
    assert [i.id for i in catalog.list(Image, dataset_id=made.id)] == [images[2].id, images[0].id]
    assert again == catalog.get(records.Dataset, "d")
    assert again.image_count == 2
    assert again.content_hash != made.content_hash


def test_the_content_of_a_data_set_is_pictures_captions_and_masks_in_order(catalog):
    def content(name, *images):
        return catalog.add_dataset(records.Dataset(name=name), images).content_hash

    first, second = records.image(1), records.image(2)
    hashes = [
        content("1", first, second),
        content("2", second, first),
        content("3", replace(first, caption="c"), second),
        content("4", replace(first, mask="m"), second),
    ]
    assert len(set(hashes)) == 4
    assert content("5", replace(first, name="other.png", note="n"), second) == hashes[0]


def test_ten_thousand_pictures_in_a_few_seconds(catalog):
    import time

    started = time.perf_counter()
    made = catalog.add_dataset(records.Dataset(name="d"), [records.image(n) for n in range(10_000)])
    assert catalog.count(Image, dataset_id=made.id) == 10_000
    assert time.perf_counter() - started < 20


def test_order_limit_and_offset(catalog):
    made = [catalog.add(records.adapter(n, size=n % 3)) for n in range(6)]
    assert catalog.list(Adapter) == made[::-1]
    assert [a.size for a in catalog.list(Adapter, order="size")] == [0, 0, 1, 1, 2, 2]
    assert catalog.list(Adapter, order="created_at", limit=2, offset=3) == made[3:5]
    assert catalog.list(Adapter, order="created_at", offset=4) == made[4:]
    with pytest.raises(TypeError, match=r"no field"):
        catalog.list(Adapter, order="-nonsense")


def test_none_and_empty_references_can_be_asked_for(catalog):
    base = catalog.add(records.base())
    run = catalog.add(records.run(base.id))
    free, own = catalog.add(records.adapter(1)), catalog.add(records.adapter(2, run_id=run.id))
    assert catalog.list(Adapter, run_id="") == [free]
    assert catalog.list(Adapter, run_id=run.id) == [own]
    assert len(catalog.list(Adapter, trashed_at=None)) == 2


def test_any_of_thousands_of_values(catalog):
    made = catalog.add_all([records.adapter(n) for n in range(5)])
    ids = [a.id for a in made] + [f"{n:010d}" for n in range(3000)]
    assert catalog.list(Adapter, id=ids) == made[::-1]
    assert catalog.list(Adapter, id=()) == []
    assert len(catalog.list(Adapter, run_id=("", "x"))) == 5


def test_text_that_is_no_unicode_is_refused_in_one_line(catalog):
    with pytest.raises(BadInput, match=r"no Unicode text"):
        catalog.add(records.base(name="caf\udce9"))


def test_ids_that_meet_are_made_again(catalog, monkeypatch):
    taken = catalog.add(records.adapter(1))
    ids = iter([taken.id, "0000000001", taken.id, "0000000002", taken.id, "0000000003"])
    for module in ("catalog", "adapter_catalog"):
        monkeypatch.setattr(f"registry.{module}.new_id", lambda: next(ids))
    assert catalog.add(records.adapter(2)).id == "0000000001"
    assert catalog.register_adapter(records.adapter(3))[0].id == "0000000002"
    assert catalog.add_all([records.adapter(4)])[0].id == "0000000003"


def test_ids_sort_by_time_and_do_not_repeat(monkeypatch):
    from registry import ids

    made = [ids.new_id() for _ in range(5000)]
    assert made == sorted(set(made))
    monkeypatch.setattr(ids.time, "time", lambda: 1_600_000_000.0)  # the clock is set back by years
    assert ids.new_id() > made[-1]
