"""The chain on the pages: where an adapter comes from, run again, comparing, records that are gone."""

import shutil
from pathlib import Path

import pytest

from registry.records import Adapter, Dataset, Image, Run, RunState
from studio.datasets.ingest import remove_images
from studio.runs.again import run_again
from studio.workspace import Workspace
from tests.app.conftest import Open
from tests.app.test_pages import button, texts
from tests.support.provenance import add_made, whole_chain


@pytest.fixture(scope="module")
def _once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("chain") / "home"
    whole_chain(home)
    return home


@pytest.fixture
def ws(_once: Path, tmp_path: Path) -> Workspace:
    workspace = Workspace.open(Path(shutil.copytree(_once, tmp_path / "home")))
    run = workspace.catalog.get(Run, "ink")
    workspace.catalog.update(Run, run.id, state=RunState.FINISHED)
    return workspace


def links(at: object) -> list[str]:
    """Labels of the links of a page, without escapes."""
    return [str(link.label).replace("\\", "") for link in at.get("page_link")]  # pyright: ignore


def test_an_adapter_tells_its_chain_down_to_the_pictures(ws: Workspace, open_page: Open):
    at = open_page(ws, "adapters", adapter=ws.catalog.get(Adapter, "small").id)
    assert not at.exception
    said = texts(at)
    assert "resize of" in said
    assert "merge of" in said
    assert "3 pictures" in said
    assert "Made with it" in said
    assert {"half at 0.5", "ink at 0.5", "herons", "ink"} <= set(links(at))


def test_an_adapter_links_to_what_was_made_from_it(ws: Workspace, open_page: Open):
    add_made(ws, "<b>evil</b> [x](http://y)", ws.catalog.get(Adapter, "ink"))
    at = open_page(ws, "adapters", adapter=ws.catalog.get(Adapter, "ink").id)
    assert "made from it" in texts(at)
    assert "half" in links(at)
    raw = [str(link.label) for link in at.get("page_link")]
    assert not [label for label in raw if "<b>" in label or "](" in label]


def test_parents_and_data_sets_that_are_gone_are_told(ws: Workspace, open_page: Open):
    ws.catalog.delete(Adapter, ws.catalog.get(Adapter, "half").id)
    ws.catalog.delete(Dataset, ws.catalog.get(Dataset, "herons").id)
    at = open_page(ws, "adapters", adapter=ws.catalog.get(Adapter, "small").id)
    assert "half at 0.5 :gray[since removed]" in texts(at)
    at = open_page(ws, "adapters", adapter=ws.catalog.get(Adapter, "ink").id)
    assert not at.exception
    assert "data set since removed" in texts(at)


def test_licence_and_consent_are_noted_on_both_pages(ws: Workspace, open_page: Open):
    pages = (("datasets", "dataset", Dataset, "herons"), ("adapters", "adapter", Adapter, "ink"))
    for page, parameter, kind, name in pages:
        at = open_page(ws, page, **{parameter: ws.catalog.get(kind, name).id})
        field = {element.label: element for element in at.text_input}
        field["Licence"].set_value("CC *BY* 4.0")
        field["Consent"].set_value("nobody is shown")
        button(at, "Save notes").click().run()
        record = ws.catalog.get(kind, name)
        assert (record.licence, record.consent) == ("CC *BY* 4.0", "nobody is shown")
        assert "Licence: CC *BY* 4.0" in texts(at)


def test_exported_files_are_listed_with_their_proof(ws: Workspace, open_page: Open, tmp_path: Path):
    from studio.adapters import export

    report = export(ws, "ink", "kohya", tmp_path / "a*b*")
    at = open_page(ws, "adapters", adapter=ws.catalog.get(Adapter, "ink").id)
    assert "Exported: 1 file" in [box.label for box in at.expander]
    row = at.table[0].value.iloc[0]
    assert (row["File"].replace("\\", ""), row["Parts"]) == (
        "a*b*.safetensors",
        f"{report.modules} of {report.modules}",
    )
    assert "*b*" not in row["File"]


def test_a_data_set_shows_what_was_trained_on_it(ws: Workspace, open_page: Open):
    at = open_page(ws, "datasets", dataset=ws.catalog.get(Dataset, "herons").id)
    assert "Trained on it: 1 adapter" in [box.label for box in at.expander]


def test_a_run_is_done_again_with_one_click(ws: Workspace, open_page: Open):
    run = ws.catalog.get(Run, "ink")
    at = open_page(ws, "runs", run=run.id)
    button(at, "Run again").click().run()
    assert not at.exception
    made = ws.catalog.get(Run, "ink-again")
    assert (made.state, made.seed, made.recipe) == (RunState.QUEUED, run.seed, run.recipe)


def test_changed_pictures_are_said_and_the_present_ones_offered(ws: Workspace, open_page: Open):
    run, herons = ws.catalog.get(Run, "ink"), ws.catalog.get(Dataset, "herons")
    remove_images(ws, herons, [ws.catalog.list(Image, dataset_id=herons.id)[0].id])
    at = open_page(ws, "runs", run=run.id)
    button(at, "Run again").click().run()
    assert "has changed since run ink (1 picture removed)" in texts(at)
    assert ws.catalog.count(Run) == 1
    button(at, "Run again with what is there now").click().run()
    assert not at.exception
    assert len(ws.run_dir(ws.catalog.get(Run, "ink-again").id).read_manifest()) == 2


def test_two_runs_are_compared(ws: Workspace, open_page: Open):
    run = ws.catalog.get(Run, "ink")
    other = run_again(ws, run, ["train.seed=99", "optimizer.lr=0.5"], name="**other**")
    at = open_page(ws, "runs", run=run.id)
    at.selectbox(key=f"compare-{run.id}").set_value(other.id).run()
    assert not at.exception
    frame = at.table[0].value
    rows = {row["What"]: (row["This run"], row.iloc[-1]) for _, row in frame.iterrows()}
    assert rows["Learning rate"][1].replace("\\", "") == "0.5"
    assert "99" in {pair[1] for pair in rows.values()}
    assert frame.columns[-1] == r"\*\*other\*\*"


@pytest.mark.parametrize(
    ("page", "parameter", "words"), [("runs", "run", "run"), ("datasets", "dataset", "data set"),
                                     ("adapters", "adapter", "adapter"), ("sample", "adapter", "adapter"),
                                     ("sample", "sample", "sample"), ("train", "dataset", "data set")],
)  # fmt: skip
@pytest.mark.parametrize("key", ["x", "nope nope", "<b>*x*", "0123456789"])
def test_a_link_to_what_is_gone_says_so_above_the_list(
    ws: Workspace, open_page: Open, page: str, parameter: str, words: str, key: str
):
    at = open_page(ws, page, **{parameter: key})
    assert not at.exception
    assert f"There is no {words} {key} here" in at.warning[0].value.replace("\\", "")
    assert r"\*x\*" in at.warning[0].value or "*" not in key
    assert at.title
