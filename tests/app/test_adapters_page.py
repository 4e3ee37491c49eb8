"""The list of adapters: filters and saved searches, several at once, taking files in."""

import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from registry.records import Adapter, FileState, Job, JobKind, JobState, SavedFilter, Watch
from registry.search import AdapterQuery
from studio.app.components.cards import adapter_card
from studio.workspace import Workspace
from tests.app.conftest import Open
from tests.app.filled import many_adapters
from tests.app.test_pages import button, reruns_quickly, texts
from tests.support.imports import finish, write_adapter


def found(at: AppTest) -> str:
    """The line that says how many adapters there are."""
    return next(line for line in texts(at).splitlines() if line.endswith(("adapter", "adapters")))


@pytest.fixture
def page(filled: Workspace, open_page: Open) -> AppTest:
    """The list with the panel of filters open."""
    at = open_page(filled, "adapters")
    button(at, "Filter").click().run()
    assert not at.exception
    return at


def test_filters_say_how_many_there_are(page: AppTest):
    assert page.selectbox(key="filter-origin").options == ["Anywhere", "Imported (8)", "Trained here (1)"]
    assert "drawing (6)" in page.multiselect(key="filter-tags").options
    assert "Not identified (1)" in page.selectbox(key="filter-family").options


@pytest.mark.parametrize(
    ("kind", "name", "value", "names"),
    [
        ("selectbox", "origin", "run", {"neon signs"}),
        ("selectbox", "family", "unidentified", {"old postcard"}),
        ("selectbox", "file_state", "missing", {"chalk"}),
        ("selectbox", "min_rating", 5, {"neon signs", "lantern glow", "<b>bold</b> **name** :smile:"}),
        ("multiselect", "tags", ["night", "drawing"], {"zibbo", "blueprint", "<b>bold</b> **name** :smile:"}),
        ("toggle", "favourite", True, {"neon signs", "paper cut"}),
        ("selectbox", "has_preview", "no", set[str]()),
        ("selectbox", "has_licence", "yes", {"neon signs"}),
        ("text_input", "trigger", "zibbo", {"ink wash", "lantern glow", "old postcard"}),
    ],
)
def test_each_filter_finds_what_it_says(
    filled: Workspace, page: AppTest, kind: str, name: str, value: object, names: set[str]
):
    shown = AdapterQuery(**{name: READ.get(value, value) if name.startswith("has_") else tupled(value)})
    assert {a.name for a in filled.catalog.search_adapters(shown).adapters} == names
    getattr(page, kind)(key=f"filter-{name}").set_value(value).run()
    assert not page.exception
    assert found(page) == ("1 adapter" if len(names) == 1 else f"{len(names)} adapters")
    page.button(key="chip-0").click().run()
    button(page, "Clear all").click().run() if name == "tags" else None
    assert found(page) == "9 adapters"


READ = {"yes": True, "no": False}


def tupled(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def test_best_match_is_an_order_of_words(filled: Workspace, open_page: Open):
    at = open_page(filled, "adapters")
    assert "Best match" not in at.selectbox(key="adapters-sort").options
    at.text_input(key="adapters-query").set_value("neon").run()
    at.selectbox(key="adapters-sort").set_value("best").run()
    assert not at.exception
    at.text_input(key="adapters-query").set_value("").run()
    assert not at.exception
    assert at.selectbox(key="adapters-sort").value == "newest"


def test_a_search_is_kept_picked_and_forgotten(filled: Workspace, page: AppTest):
    page.text_input(key="adapters-query").set_value("lanternoid").run()
    page.multiselect(key="filter-tags").set_value(["night"]).run()
    page.text_input(key="saved-name").set_value("lanterns at night").run()
    button(page, "Save").click().run()
    record = filled.catalog.get(SavedFilter, "lanterns at night")
    assert record.query == {"query": "lanternoid", "tags": ["night"]}
    before = found(page)
    button(page, "Clear all").click().run()
    assert found(page) == "9 adapters"
    button(page, "lanterns at night").click().run()
    assert found(page) == before
    assert page.text_input(key="adapters-query").value == "lanternoid"
    assert page.multiselect(key="filter-tags").value == ["night"]
    page.button(key=f"forget-{record.id}").click().run()
    assert not filled.catalog.list(SavedFilter, name=record.name)
    button(page, "Undo").click().run()
    assert filled.catalog.get(SavedFilter, record.name).query == record.query


def test_a_saved_search_that_cannot_be_read_is_one_line(filled: Workspace, open_page: Open):
    record = filled.catalog.add(SavedFilter(name="odd", query={"colour": "red"}))
    at = open_page(filled, "adapters")
    at.button(key=f"saved-{record.id}").click().run()
    assert not at.exception
    assert "colour" in at.error[0].value


def choose_all(at: AppTest) -> AppTest:
    button(at, "Select").click().run()
    button(at, "All on this page").click().run()
    assert "9 adapters chosen" in texts(at).replace("**", "")
    return at


def test_several_are_tagged_rated_and_made_favourites(filled: Workspace, open_page: Open):
    at = choose_all(open_page(filled, "adapters"))
    at.text_input(key="bulk-tags").set_value("shown, wall").run()
    button(at, "Add to all").click().run()
    assert all({"shown", "wall"} <= set(a.tags) for a in filled.catalog.list(Adapter))
    at.text_input(key="bulk-tags").set_value("shown").run()
    button(at, "Take from all").click().run()
    assert not any("shown" in a.tags for a in filled.catalog.list(Adapter))
    at.feedback(key="bulk-stars").set_value(1).run()
    assert {a.rating for a in filled.catalog.list(Adapter)} == {2}
    button(at, "No rating").click().run()
    assert {a.rating for a in filled.catalog.list(Adapter)} == {0}
    button(at, "Undo").click().run()
    assert {a.rating for a in filled.catalog.list(Adapter)} == {2}
    button(at, "Make favourites").click().run()
    assert all(a.favourite for a in filled.catalog.list(Adapter))
    assert not at.exception


def test_a_tag_that_is_none_is_refused_in_one_line(filled: Workspace, open_page: Open):
    at = choose_all(open_page(filled, "adapters"))
    at.text_input(key="bulk-tags").set_value("a/b").run()
    button(at, "Add to all").click().run()
    assert "path separator" in at.error[0].value
    assert not any("a/b" in a.tags for a in filled.catalog.list(Adapter))


def test_several_go_to_the_trash_and_come_back(filled: Workspace, open_page: Open):
    lost = filled.catalog.get(Adapter, "chalk")
    filled.resolve(lost.path).unlink()
    at = choose_all(open_page(filled, "adapters"))
    button(at, "To the trash").click().run()
    assert filled.catalog.count_adapters(trashed=True) == 9
    assert not filled.resolve(filled.catalog.get(Adapter, "zibbo").path).exists()
    button(at, "Undo").click().run()
    assert not at.exception
    assert filled.catalog.count_adapters() == 9
    assert filled.resolve(filled.catalog.get(Adapter, "zibbo").path).exists()
    choose_all(open_page(filled, "adapters"))


def test_what_cannot_come_back_is_named(filled: Workspace, open_page: Open):
    at = choose_all(open_page(filled, "adapters"))
    button(at, "To the trash").click().run()
    filled.trash.empty()
    at = open_page(filled, "adapters", trash="1")
    button(at, "Select").click().run()
    button(at, "All on this page").click().run()
    button(at, "Take out of the trash").click().run()
    assert not at.exception
    assert "it may have been emptied" in texts(at)


def form_of(ids: list[str]) -> None:
    """A page of the dialog alone: AppTest closes dialogs at each run."""
    from studio.app.components.bulk_export import export_form

    export_form(ids)


def test_several_are_exported_into_one_folder_and_a_zip(filled: Workspace, open_page: Open):
    open_page(filled, "adapters")
    ids = [filled.catalog.get(Adapter, name).id for name in ("neon signs", "ink wash")]
    at = AppTest.from_function(form_of, args=(ids,), default_timeout=60).run()
    at.text_input(key="exports-name").set_value("two of them").run()
    button(at, "Write and check").click().run()
    assert not at.exception
    folder = filled.home / "exports" / "two-of-them"
    names = {path.name for path in folder.iterdir()}
    assert {name for name in names if name.endswith(".safetensors")} == {
        "ink-wash.safetensors",
        "neon-signs.safetensors",
    }
    with zipfile.ZipFile(filled.home / "exports" / "two-of-them.zip") as packed:
        assert {Path(name).name for name in packed.namelist()} == names
        for name in packed.namelist():
            assert packed.read(name) == (folder / Path(name).name).read_bytes()


def test_two_good_files_and_a_bad_one_come_in_by_path(empty: Workspace, open_page: Open, tmp_path: Path):
    folder = tmp_path / "loras"
    folder.mkdir()
    for seed in (1, 2):
        write_adapter(folder / f"good {seed}.safetensors", seed)
    (folder / "bad.safetensors").write_bytes(b"1234567")
    at = open_page(empty, "adapters", add="1")
    at.text_area(key="add-places").set_value(f"{folder}\n").run()
    at.text_input(key="add-tags").set_value("mine, new").run()
    button(at, "Add them").click().run()
    assert not at.exception
    job = empty.catalog.list(Job, kind=JobKind.IMPORT)[0]
    assert job.payload["copy"] is False
    assert "Nothing is working on it." in texts(at)
    button(at, "Start the worker")
    assert "waiting for its turn" in texts(open_page(empty, "adapters"))

    finish(empty, job)
    at = open_page(empty, "adapters", imports=job.id)
    assert not at.exception
    assert {m.label: m.value for m in at.metric}["Taken in"] == "2"
    assert {m.label: m.value for m in at.metric}["Refused"] == "1"
    refused = next(line for line in texts(at).splitlines() if "Has 7 bytes" in line)
    assert "too few for a safetensors file" in refused
    assert {a.tags for a in empty.catalog.list(Adapter)} == {("mine", "new")}
    button(at, "Show my adapters").click().run()
    assert found(at) == "2 adapters"


def test_dropped_files_are_copied_and_named_ones_stay(empty: Workspace, open_page: Open, tmp_path: Path):
    there = write_adapter(tmp_path / "there.safetensors", 1)
    dropped = write_adapter(tmp_path / "dropped.safetensors", 2).read_bytes()
    at = open_page(empty, "adapters", add="1")
    files = [("dropped.safetensors", dropped, ""), ("bad.safetensors", b"1234567", "")]
    at.file_uploader[0].set_value(files).run()
    at.text_area(key="add-places").set_value(str(there)).run()
    button(at, "Add them").click().run()
    assert not at.exception
    for job in empty.catalog.list(Job, kind=JobKind.IMPORT):
        finish(empty, job)
    adapters = {a.name: a for a in empty.catalog.list(Adapter)}
    assert Path(adapters["there"].path) == there
    assert empty.resolve(adapters["dropped"].path).is_relative_to(empty.home)
    jobs = ",".join(job.id for job in empty.catalog.list(Job, kind=JobKind.IMPORT))
    refused = [
        line for line in texts(open_page(empty, "adapters", imports=jobs)).splitlines() if "bad." in line
    ]
    assert [line.strip() for line in refused] == ["bad.safetensors"]


def test_a_place_that_is_not_there_is_one_line_and_nothing_is_queued(empty: Workspace, open_page: Open):
    at = open_page(empty, "adapters", add="1")
    at.text_area(key="add-places").set_value("/no/such/folder").run()
    button(at, "Add them").click().run()
    assert "does not exist" in at.error[0].value
    assert not empty.catalog.list(Job)


def test_an_import_is_stopped(empty: Workspace, open_page: Open, tmp_path: Path):
    at = open_page(empty, "adapters", add="1")
    at.text_area(key="add-places").set_value(str(tmp_path)).run()
    button(at, "Add them").click().run()
    button(at, "Stop").click().run()
    assert empty.catalog.list(Job)[0].state is JobState.CANCELLED
    at = open_page(empty, "adapters", imports=empty.catalog.list(Job)[0].id)
    assert "Stopped." in texts(at)


def test_a_folder_is_watched_and_not_any_more(empty: Workspace, open_page: Open, tmp_path: Path):
    folder = tmp_path / "loras"
    folder.mkdir()
    at = open_page(empty, "adapters", add="1")
    field = {element.label: element for element in at.text_input}["Folder"]
    field.set_value(str(folder))
    button(at, "Watch it").click().run()
    watch = empty.catalog.list(Watch)[0]
    assert watch.path == str(folder)
    at.button(key=f"unwatch-{watch.id}").click().run()
    assert not empty.catalog.list(Watch)
    button(at, "Undo").click().run()
    assert [w.path for w in empty.catalog.list(Watch)] == [str(folder)]


def test_an_import_that_is_not_there_is_said(empty: Workspace, open_page: Open):
    at = open_page(empty, "adapters", imports="0000000000")
    assert not at.exception
    assert "no such import" in at.warning[0].value


def test_cards_say_what_is_wrong_and_know_every_origin(filled: Workspace):
    adapter = filled.catalog.get(Adapter, "zibbo")
    for origin in ("run", "import", "merge", "resize", "extract", "edit", "another"):
        assert adapter_card(replace(adapter, origin=origin)).lines[1]
    marks = {state: adapter_card(replace(adapter, file_state=state)).badges[0][0] for state in FileState}
    assert marks[FileState.MISSING] == "file missing"
    assert marks[FileState.CHANGED] == "file changed"
    assert marks[FileState.NEW] == "being read"
    assert marks[FileState.OK] == marks[FileState.EDITED] == adapter.trigger_words[0]
    named = replace(adapter, trigger_words=("ink", "hat"), rank=16, metadata={"ranks": [16, 20]})
    assert {("ink", "accent"), ("hat", "accent")} <= set(adapter_card(named).badges)
    assert adapter_card(named).lines[0].endswith("rank 16 to 20")
    assert ("not identified", "warn") in adapter_card(replace(adapter, family="")).badges


def test_choosing_and_filtering_stay_quick_with_a_thousand_adapters(empty: Workspace, open_page: Open):
    many_adapters(empty, 1000)
    at = open_page(empty, "adapters")
    button(at, "Filter").click().run()
    button(at, "Select").click().run()
    button(at, "All 1,000 that fit").click().run()
    reruns_quickly(at)
