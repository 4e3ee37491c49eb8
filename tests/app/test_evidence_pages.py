"""Evidence on the pages: asking for it, the verdict on run and adapter, the sheet, the warning at export."""

from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from registry.records import Adapter, Comparison, Evaluation, Job, Run
from studio.app.components import compare_parts
from studio.evidence import evaluations
from studio.evidence.plan import Wishes
from studio.workspace import Workspace
from tests.app.conftest import Open
from tests.app.forms import open_form
from tests.support.provenance import make_adapter, make_dataset, make_run
from tests.support.sheets import FEW, add_checkpoints, evidence, judged_run, note_checkpoints

STEPS = (5, 10)


@pytest.fixture
def run(empty: Workspace) -> Run:
    made = make_run(empty, make_dataset(empty))
    add_checkpoints(empty, made, STEPS)
    note_checkpoints(empty, made, STEPS)
    return made


def said(at: AppTest) -> str:
    kinds = ("title", "subheader", "markdown", "caption", "error", "warning")
    parts = [str(element.value) for kind in kinds for element in getattr(at, kind)]
    text = "\n".join([*parts, *(button.label for button in at.button)])
    return text.replace("\\", "").replace("\u2060", "")  # marks that keep names from being Markdown


def test_evidence_is_asked_for_on_the_page_of_a_run(empty: Workspace, run: Run, open_page: Open):
    at = open_page(empty, "runs", run=run.id)
    assert "Nothing was measured yet" in said(at)
    at.button(key="e-open").click().run()
    assert not at.exception
    at = open_form(empty, "evidence_dialog", "evidence_form", run)
    assert "216 pictures to draw" in said(at)  # none and two checkpoints, 4 strengths, 6 prompts, 4 seeds
    at.number_input(key="e-seeds").set_value(2).run()
    assert "108 pictures to draw" in said(at)
    at.button(key="e-start").click().run()
    assert not at.exception
    made = evaluations.newest(empty, run)
    assert made is not None
    assert empty.catalog.count(Comparison) == 1
    assert empty.catalog.count(Job) > 1
    at = open_page(empty, "runs", run=run.id)
    assert "No worker runs" in said(at)
    at.button(key="e-stop").click().run()
    at = open_page(empty, "runs", run=run.id)
    assert "The evidence is not complete" in said(at)
    at.button(key="e-other").click().run()
    assert not at.exception
    assert "e-asks-again" not in at.session_state, "the dialog opens once"


def test_the_verdict_is_on_the_page_of_the_run_and_leads_to_the_sheet(
    empty: Workspace, run: Run, open_page: Open, monkeypatch: pytest.MonkeyPatch
):
    made = judged_run(empty, run, FEW, memorised=True)
    at = open_page(empty, "runs", run=run.id)
    assert "Use ink@10, strength 0.75; 0.5 to 1 are about as good" in said(at)
    assert "9 of 16 pictures copy 3 training pictures." in said(at)
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(compare_parts, "_GRID", lambda *, data, **_: sent.append(data) or {})
    at = open_page(empty, "compare", evidence=made.id)
    assert not at.exception
    text = said(at)
    for words in ("Evidence: ink", "Best first", "What strength does to ink@10", "Nearest training pictures"):
        assert words in text
    strengths, subjects = sent
    assert strengths["columns"] == ["none", "0.5", "0.75", "1"]
    assert subjects["columns"] == ["none", "ink@5", "ink@10"]
    assert all(cell["url"] for row in subjects["rows"] for cell in row["cells"])
    assert "likeness 100%" in text


def test_the_strength_is_on_the_page_of_the_adapter(empty: Workspace, run: Run, open_page: Open):
    adapter = make_adapter(empty, run)
    assert "It can be drawn at several strengths" in said(open_page(empty, "adapters", adapter=adapter.id))
    judged_run(empty, run, FEW)  # of the checkpoints and of this adapter, which is the last
    at = open_page(empty, "adapters", adapter=adapter.id)
    assert "Of its run, **ink@10** was found to be better" in said(at)
    own = evaluations.begin(empty, evaluations.ask(empty, adapter, Wishes(seeds=2)))
    assert empty.catalog.count(Evaluation) == 2
    assert "No worker runs" in said(open_page(empty, "adapters", adapter=adapter.id))
    evaluations.settle(empty, own, evidence([adapter.id], (0.75, 1.0), memorised=True))
    at = open_page(empty, "adapters", adapter=adapter.id)
    assert "Use ink, strength 0.75" in said(at)
    assert empty.catalog.get(Adapter, adapter.id).recommended_weight == 0.75
    next(button for button in at.button if button.label == "Export").click().run()
    assert "9 of 16 pictures copy" in at.warning[0].value
