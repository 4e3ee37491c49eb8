"""The chain on the pages: where an adapter comes from, run again, comparing, records that are gone."""

import shutil
from pathlib import Path

import pytest

from registry.records import Adapter, Base, Dataset, Image, Run, RunState
from studio.datasets.ingest import remove_images
from studio.runs.again import run_again
from studio.workspace import Workspace
from tests.app.conftest import Open
from tests.app.test_pages import button, texts
from tests.support.provenance import add_made, picture, whole_chain


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


def test_a_dropped_picture_leads_to_the_adapters_that_hold_it(ws: Workspace, open_page: Open):
    at = open_page(ws, "adapters")
    button(at, "By picture").click().run()
    assert "Which adapters hold this picture?" in texts(at)
    at.file_uploader(key="uses-file").set_value([("my heron.png", picture(1), "image/png")]).run()
    assert not at.exception
    said = texts(at)
    assert "3 adapters hold it" in said
    assert "my heron.png" in said
    assert "Made with those" in said
    assert {"herons", "ink"} <= set(links(at))
    known = ws.catalog.list(Image, name="1.png")[0].pixel_hash
    assert known in at.query_params["picture"]
    again = open_page(ws, "adapters", picture=known)
    assert "3 adapters hold it" in texts(again)


def test_a_picture_that_nothing_holds_and_one_that_is_none(ws: Workspace, open_page: Open):
    ws.catalog.add(Adapter(name="stray", tensor_sha256="t", file_sha256="f", path="x", origin="import"))
    at = open_page(ws, "adapters", picture="1")
    at.file_uploader(key="uses-file").set_value([("x.png", b"hello", "image/png")]).run()
    assert not at.exception
    assert "x.png" in at.error[0].value.replace("\\", "")
    at.file_uploader(key="uses-file").set_value([("new.png", picture(77), "image/png")]).run()
    assert not at.error
    assert "No adapter here is known to hold it." in texts(at)
    assert "1 more adapter may hold it as well" in texts(at)
    for wrong in ("/etc/passwd", "0123"):
        at = open_page(ws, "adapters", picture=wrong)
        assert not at.exception
        assert "names no picture" in at.warning[0].value


def test_a_picture_of_a_data_set_leads_to_its_uses(ws: Workspace, open_page: Open):
    herons = ws.catalog.get(Dataset, "herons")
    image = ws.catalog.list(Image, dataset_id=herons.id, order="position")[0]
    at = open_page(ws, "datasets", dataset=herons.id)
    at.button(key=f"uses-of-{image.id}").click().run()
    assert not at.exception
    assert "3 adapters hold it" in texts(at)


def test_two_runs_of_the_list_are_compared(ws: Workspace, open_page: Open):
    run = ws.catalog.get(Run, "ink")
    other = run_again(ws, run, ["optimizer.lr=0.5"], name="ink hot")
    at = open_page(ws, "runs")
    button(at, "Compare two runs").click().run()
    at.selectbox(key="compare-one").set_value(run.id).run()
    at.selectbox(key="compare-other").set_value(other.id).run()
    assert not at.exception
    frame = at.table[0].value
    assert list(frame.columns[-2:]) == ["ink", "ink hot"]
    assert "Learning rate" in set(frame["What"])


def test_a_link_to_a_base_puts_it_first_and_one_that_is_gone_is_said(ws: Workspace, open_page: Open):
    pocket = ws.catalog.get(Base, "pocket")
    made = ws.catalog.add(Base(name="mine", family="sd15", location="/x", kind="folder"))
    at = open_page(ws, "bases", base=made.id)
    assert next(s.value for s in at.subheader) == "mine"
    assert next(s.value for s in open_page(ws, "bases").subheader) == pocket.name
    gone = open_page(ws, "bases", base="nope")
    assert "There is no base nope here" in gone.warning[0].value


def test_masks_are_explained_where_pictures_are_dropped(ws: Workspace, open_page: Open):
    said = texts(open_page(ws, "datasets", new="1"))
    assert "known as a mask by its name alone" in said
    assert "001-masklabel.png" in said


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
