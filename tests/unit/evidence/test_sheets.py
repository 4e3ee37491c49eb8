"""Evidence sheets: what is drawn, when it is measured, what follows from it, the report and the command."""

import json
import re
from pathlib import Path

import pytest

from registry.errors import BadInput
from registry.records import Adapter, Comparison, Evaluation, Job, JobKind, JobState, Run, Sample
from studio.compare.grids import spec_of
from studio.evidence import evaluations
from studio.evidence.outputs import facts, page_of
from studio.evidence.plan import Plan, Wishes, plan_of_adapter, plan_of_run, without_word
from studio.evidence.words import strength_line
from studio.runs import worker
from studio.workspace import Workspace
from tests.support.cli import Studio, call_here
from tests.support.painter import Painter
from tests.support.provenance import make_adapter, make_dataset, make_run
from tests.support.sampling import add_adapter
from tests.support.sheets import FEW, add_checkpoints, judged_run


@pytest.fixture
def run(chained: Workspace) -> Run:
    found = chained.catalog.get(Run, "ink")
    add_checkpoints(chained, found, (5, 10))
    return found


def test_a_plan_asks_with_and_without_the_trigger(chained: Workspace, run: Run):
    plan = plan_of_run(chained, run, Wishes())
    assert [subject.name for subject in plan.subjects] == [
        "ink@5",
        "ink@10",
        "ink",
    ]  # 20 has an adapter alone
    about = [prompt.text for prompt in plan.prompts if prompt.about]
    prior = [prompt.text for prompt in plan.prompts if not prompt.about]
    assert about[0] == "a lighthouse in fog, inkstyle"
    assert len(about) == 4
    assert all("inkstyle" in text for text in about)
    assert prior[0] == "a lighthouse in fog"
    assert not any("inkstyle" in text for text in prior)
    assert len(plan.training) == 3
    assert plan_of_run(chained, run, Wishes(checkpoints=(10,))).order == [f"{run.id}@10"]


def test_a_word_goes_with_its_comma():
    assert without_word("a cat, sks, at night", "sks") == "a cat, at night"
    assert without_word("sks, a cat", "sks") == "a cat"
    assert without_word("a sks cat", "sks") == "a cat"
    assert without_word("a skss cat", "sks") == "a skss cat"
    assert strength_line(0.75, 0.5, 1.0) == "0.75; 0.5 to 1 are about as good"


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        (Wishes(checkpoints=(7,)), "has nothing at step 7. there is 5, 10, 20"),
        (Wishes(seeds=1), "seeds: 1 is not from 2 to 64"),
        (Wishes(weights=(0.0,)), "weights: there is none but 0"),
        (Wishes(dataset="herons"), "data set: is known"),
        (Wishes(prompts=("a boat",)), "prompts: one alone asks for it"),
    ],
)
def test_what_cannot_be_judged_is_said_in_one_line(chained: Workspace, run: Run, wishes: Wishes, said: str):
    with pytest.raises(BadInput, match=re.escape(said)):
        evaluations.ask(chained, run, wishes)
    assert chained.catalog.count(Evaluation) == chained.catalog.count(Comparison) == 0


def test_an_imported_adapter_needs_pictures_and_a_base(chained: Workspace):
    foreign = add_adapter(chained, "foreign")
    with pytest.raises(BadInput, match="has no base that is known here"):
        plan_of_adapter(chained, foreign, Wishes(dataset="herons"))
    with pytest.raises(BadInput, match="its pictures are unknown"):
        plan_of_adapter(chained, foreign, Wishes(base="pocket"))
    plan = plan_of_adapter(chained, foreign, Wishes(base="pocket", dataset="herons"))
    assert (plan.order, len(plan.training)) == ([foreign.id], 3)
    with pytest.raises(BadInput, match="are of a run, not of an adapter"):
        plan_of_adapter(chained, foreign, Wishes(checkpoints=(5,)))


def test_a_sheet_is_asked_for_once_and_measured_when_it_is_drawn(chained: Workspace, run: Run):
    wishes = Wishes(seeds=2, weights=(1.0,))
    asked = evaluations.ask(chained, run, wishes)
    made = evaluations.begin(chained, asked)
    spec = spec_of(chained.catalog.get(Comparison, made.comparison_id))
    assert (asked.cells, asked.missing) == (spec.size, spec.size)
    assert evaluations.stage_of(chained, made).name == "drawing"
    assert evaluations.begin(chained, evaluations.ask(chained, run, wishes)).id == made.id
    assert evaluations.queue_due(chained) == 0  # nothing is drawn
    evaluations.stop(chained, made)
    assert evaluations.stage_of(chained, made).name == "incomplete"
    evaluations.go_on(chained, made)
    assert evaluations.stage_of(chained, made).name == "drawing"
    drawn = judged_run(chained, run, measured=False)
    assert evaluations.queue_due(chained) == 2  # the smaller one has all of its pictures now, too
    assert evaluations.queue_due(chained) == 0  # once
    (job,) = chained.catalog.list(Job, kind=JobKind.EVALUATE, subject_id=drawn.id)
    assert job.state is JobState.QUEUED
    assert evaluations.stage_of(chained, drawn).name == "measuring"
    chained.catalog.finish_job(job.id, JobState.FAILED, error="the base: is gone. Bring it back.")
    assert evaluations.stage_of(chained, drawn).error == "the base: is gone. Bring it back."
    evaluations.go_on(chained, drawn)
    assert evaluations.stage_of(chained, drawn).name == "measuring"


def test_the_command_plans_once(chained: Workspace, run: Run, monkeypatch: pytest.MonkeyPatch):
    planned: list[Run] = []

    def counted(ws: Workspace, about: Run, wishes: Wishes) -> Plan:
        planned.append(about)
        return plan_of_run(ws, about, wishes)

    monkeypatch.setattr(evaluations, "plan_of_run", counted)
    call_here(chained.home, "evaluate", "ink", "--queue", "--seeds", "2", "--weights", "1")
    assert planned == [run]
    assert chained.catalog.count(Evaluation) == 1


def test_what_is_found_goes_to_the_adapter_and_warns(chained: Workspace, run: Run):
    adapter = chained.catalog.list(Adapter, run_id=run.id)[0]
    assert evaluations.memorised(chained, adapter) == ""
    made = judged_run(chained, run, FEW)
    assert facts(chained, made)["adapters"] == []  # the pick is a checkpoint
    assert chained.catalog.get(Adapter, adapter.id).recommended_weight == 1.0
    own = evaluations.begin(chained, evaluations.ask(chained, adapter, Wishes(seeds=2)))
    from tests.support.sheets import evidence

    evaluations.settle(chained, own, evidence([adapter.id], (0.75, 1.0), memorised=True))
    assert chained.catalog.get(Adapter, adapter.id).recommended_weight == 0.75
    assert evaluations.memorised(chained, adapter) == "9 of 16 pictures copy 3 training pictures."
    out = chained.home / "out.safetensors"
    said = call_here(chained.home, "adapters", "export", adapter.id, "--out", out)
    assert (said.code, said.stderr) == (0, "warning: ink: 9 of 16 pictures copy 3 training pictures.\n")
    found = evaluations.judged(chained, adapter)
    assert found is not None
    assert (found[0].id, found[1]) == (own.id, adapter.id)


def test_the_report_needs_no_network_and_tells_of_the_run_before(chained: Workspace, run: Run):
    dataset = next(iter(chained.catalog.list(type(make_dataset(chained, "more")), name="herons")))
    judged_run(chained, run, FEW)
    later = make_run(chained, dataset, "ink again")
    add_checkpoints(chained, later, (5, 10))
    made = judged_run(chained, later, FEW, memorised=True)
    page = page_of(chained, made)
    assert "default-src 'none'" in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    told = ("Use ink again@10", "9 of 16 pictures copy", "Against the run before", "ink@10 at 0.75", "<svg")
    for text in told:
        assert text in page
    assert facts(chained, made)["predecessor"]["about"] == "ink"


def test_the_command_draws_measures_and_writes(
    chained: Workspace, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """With plain pictures instead of drawn ones; the measuring is the real one, in a child."""
    monkeypatch.setattr(worker, "SamplerClient", Painter)
    make_adapter(chained, run, seed=3)
    studio = Studio(chained.home)
    out = tmp_path / "ink.html"
    words = ["evaluate", "ink", "--seeds", "2", "--weights", "0.5,1", "--prompt", "a heron, inkstyle"]
    words += ["--prompt", "a boat, inkstyle", "--prior", "a heron"]
    made = studio(*words, "--out", out)
    assert made["state"] == "measured"
    assert made["report"] == str(out)
    assert "<svg" in out.read_text()
    points = made["evidence"]["points"]
    assert {(point["subject"], point["weight"]) for point in points} >= {("", 0.0), (f"{run.id}@5", 0.5)}
    count = chained.catalog.count(Sample)
    again = studio(*words)
    assert (again["id"], chained.catalog.count(Sample)) == (made["id"], count)
    assert json.dumps(again)
    for wrong, said in (
        (["evaluate", "nobody"], "run 'nobody'"),
        (["evaluate", "ink", "--out", str(tmp_path)], "is a folder"),
        (["evaluate", "ink", "--checkpoints", "a,b"], "is not a list of numbers"),
    ):
        assert said in studio(*wrong, code=2)
