"""Queries about descent: bounded, exact, and on PostgreSQL the same as on SQLite."""

import pytest

from registry.errors import BadInput
from registry.lineage import AT_ONCE, MAX_KEYWORDS
from registry.records import Adapter, AdapterUse, Export, Job, Run, RunImage, Sample
from tests.support import records


def pictures(run_id, *numbers):
    return [
        RunImage(run_id=run_id, position=at, pixel_hash=f"{n:064x}", blob=f"{n + 100:064x}", name=f"{n}.png")
        for at, n in enumerate(numbers)
    ]


@pytest.fixture
def base(catalog):
    return catalog.add(records.base())


def test_run_job_and_pictures_come_together_or_not_at_all(catalog, base):
    run = catalog.add_run(records.run(base.id, id="0123456789"), pictures("0123456789", 1, 2))
    assert [i.name for i in catalog.lineage.run_images(run.id)] == ["1.png", "2.png"]
    assert [i.name for i in catalog.lineage.run_images(run.id, most=1)] == ["1.png"]
    assert catalog.lineage.count_run_images(run.id) == 2
    with pytest.raises(BadInput):
        catalog.add_run(records.run(base.id, id="aaaaaaaaaa"), pictures("bbbbbbbbbb", 1))
    assert [r.id for r in catalog.list(Run)] == [run.id]
    assert catalog.count(Job) == 1
    catalog.delete(Run, run.id)
    assert catalog.lineage.run_images(run.id) == []


def test_pictures_of_a_run_are_entered_once(catalog, base):
    run = catalog.add(records.run(base.id))
    assert catalog.lineage.runs_without_images() == [run.id]
    assert catalog.lineage.add_run_images(run.id, pictures(run.id, 3))
    assert not catalog.lineage.add_run_images(run.id, pictures(run.id, 4))
    assert not catalog.lineage.add_run_images("gone", pictures("gone", 4))
    assert catalog.lineage.runs_without_images() == []
    assert catalog.lineage.runs_with(f"{3:064x}") == [run.id]
    assert catalog.lineage.pictures_like("0" * 62 + "0") == {f"{3:064x}": "3.png"}
    assert catalog.lineage.pictures_like("0" * 60 + "00%") == {}


def test_children_are_those_that_name_the_parent_itself(catalog):
    parent, other = catalog.add(records.adapter(1, id="abcdefghjk")), catalog.add(records.adapter(2))
    child = catalog.add(records.adapter(3, origin="merge", parents=(parent.id, other.id)))
    catalog.add(records.adapter(4, origin="merge", parents=(other.id,)))
    catalog.add(records.adapter(5, origin="resize", parents=("abcdefghjkx",)))
    assert catalog.lineage.children(parent.id) == [child]
    assert catalog.lineage.children("%") == []
    assert catalog.lineage.descent()[child.id] == (parent.id, other.id)


def test_what_operations_note_of_their_parents_counts_whatever_its_shape(catalog):
    odd = (
        {"made": {"parents": [{"id": "b1"}, {"id": ""}, "x", None]}},
        {"made": {"parents": 3}},
        {"made": 1},
    )
    made = [
        catalog.add(records.adapter(n, origin="extract", metadata=metadata))
        for n, metadata in enumerate(odd, 1)
    ]
    assert [catalog.lineage.descent()[a.id] for a in made] == [("b1",), (), ()]


def test_more_ids_than_one_statement_takes(catalog):
    made = catalog.add_all([records.adapter(n) for n in range(AT_ONCE + 7)])
    assert len(catalog.lineage.adapters([a.id for a in made])) == AT_ONCE + 7


def test_adapters_whose_pictures_nobody_wrote_down(catalog, base):
    run, bare = (catalog.add(records.run(base.id, name=name)) for name in ("a", "b"))
    catalog.lineage.add_run_images(run.id, pictures(run.id, 1))
    catalog.add(records.adapter(1, origin="run", run_id=run.id))
    doubtful = [
        catalog.add(records.adapter(2, origin="run", run_id=bare.id)),
        catalog.add(records.adapter(3, origin="import")),
    ]
    catalog.add(records.adapter(4, origin="merge"))
    assert catalog.lineage.unrecorded() == {a.id for a in doubtful}


def test_samples_are_found_by_adapter_by_its_weights_and_by_base(catalog, base):
    def sample(*uses, files=("x.png",)):
        return catalog.add(Sample(base_id=base.id, request={}, files=files, adapters=uses))

    mine = AdapterUse(adapter_id="mine", tensor_sha256="t1")
    one, other = sample(mine), sample(AdapterUse(adapter_id="before", tensor_sha256="t1"))
    sample(mine, files=())
    sample(AdapterUse(adapter_id="else", tensor_sha256=""))
    find = catalog.lineage.samples_with
    assert find([("mine", "t1")]) == [other, one]
    assert find([("mine", "")]) == [one]
    assert find([("mine", "t1")], limit=1) == [other]
    assert len(find([], [base.id])) == 3
    assert find() == []


def test_exports_by_file_and_by_tensors(catalog):
    def export(n):
        return catalog.add(
            Export(adapter_id="a", path="p", layout="kohya", dtype="fp32", sha256=f"s{n}",
                   report={"tensor_sha256": f"t{n % 2}"})
        )  # fmt: skip

    one, two, three = (export(n) for n in (1, 2, 3))
    assert catalog.lineage.exports_like("s1", "t1") == [one, three]
    assert catalog.lineage.exports_like("s9", "t0") == [two]
    assert catalog.lineage.exports_like("s9", "t9") == []


def test_keywords_come_once_are_bounded_and_found(catalog):
    adapter = catalog.add(records.adapter(1, keywords="heron"))
    catalog.lineage.add_keywords([adapter.id, "gone"], ["lake", "heron"])
    assert catalog.get(Adapter, adapter.id).keywords == "heron lake"
    catalog.lineage.add_keywords([adapter.id], [f"w{n}" for n in range(500)])
    kept = catalog.get(Adapter, adapter.id).keywords.split()
    assert (len(kept), kept[:3]) == (MAX_KEYWORDS, ["heron", "lake", "w0"])
    assert [a.id for a in catalog.search_adapters("lake heron").adapters] == [adapter.id]
