"""Every page with nothing, with everything and with failures; what the buttons do."""

import io
import subprocess
import sys
import time
from typing import Any

import pytest
from PIL import Image as Pillow
from streamlit.testing.v1 import AppTest

from registry.records import Adapter, Base, Dataset, Image, Job, JobKind, Run, RunState, Sample
from studio.app.shell import PAGES
from studio.pocket.pictures import demo_set
from studio.workspace import Workspace
from tests.app.conftest import Open
from tests.app.filled import NAN, many_adapters, png
from trainers.recipe import preset_by_name


def texts(at: AppTest) -> str:
    """All markdown, captions, titles, errors and labels of a page, without escapes."""
    kinds = ("title", "header", "subheader", "markdown", "caption", "error", "warning", "success", "text")
    parts = [str(element.value) for kind in kinds for element in getattr(at, kind)]
    return "\n".join([*parts, *(button.label for button in at.button)]).replace("\\", "")


def button(at: AppTest, label: str) -> object:
    """The button with this label."""
    found = [b for b in at.button if b.label.replace("\\", "") == label]
    assert found, f"no button {label!r} among {[b.label for b in at.button]}"
    return found[0]


@pytest.mark.parametrize("page", PAGES)
def test_every_page_opens_with_nothing_in_the_workspace(empty: Workspace, open_page: Open, page: str):
    at = open_page(empty, page)
    assert not at.exception
    assert not at.error
    assert at.title


@pytest.mark.parametrize("page", PAGES)
def test_every_page_opens_with_everything_in_the_workspace(filled: Workspace, open_page: Open, page: str):
    at = open_page(filled, page)
    assert not at.exception
    assert at.title


@pytest.mark.parametrize(
    ("page", "label"),
    [
        ("home", "Add your pictures"),
        ("home", "Try the demo"),
        ("datasets", "Add pictures"),
        ("train", "Add pictures"),
        ("runs", "Train"),
        ("adapters", "Train an adapter"),
        ("adapters", "Add adapters"),
        ("bases", "Add a base"),
    ],
)
def test_an_empty_page_has_the_button_that_fills_it(empty: Workspace, open_page: Open, page: str, label: str):
    button(open_page(empty, page), label)


def test_home_says_what_is_running_and_what_failed(filled: Workspace, open_page: Open):
    at = open_page(filled)
    said = texts(at)
    assert "zibbo, lower rate" in said
    assert "step 260 of 400" in said
    assert NAN in said


def test_a_failed_run_says_why_and_can_go_on(filled: Workspace, open_page: Open):
    run = filled.catalog.list(Run, state=RunState.FAILED)[0]
    at = open_page(filled, "runs", run=run.id)
    assert not at.exception
    assert NAN in at.error[0].value.replace("\\", "")
    button(at, "Go on").click().run()
    assert filled.catalog.get(Run, run.id).state is RunState.QUEUED


def test_a_running_run_can_be_paused_and_stopped(filled: Workspace, open_page: Open):
    run = filled.catalog.list(Run, state=RunState.RUNNING)[0]
    at = open_page(filled, "runs", run=run.id)
    button(at, "Pause").click().run()
    assert filled.catalog.get(Run, run.id).state is RunState.PAUSING
    button(at, "Stop").click().run()
    assert filled.catalog.get(Run, run.id).state is RunState.STOPPING


def test_a_queued_run_can_be_taken_out_of_the_queue(filled: Workspace, open_page: Open):
    run = filled.catalog.list(Run, state=RunState.QUEUED)[0]
    at = open_page(filled, "runs", run=run.id)
    button(at, "Stop").click().run()
    assert filled.catalog.get(Run, run.id).state is RunState.STOPPED


def test_a_failed_sample_says_why_until_it_is_understood(filled: Workspace, open_page: Open):
    at = open_page(filled, "sample")
    assert "is for sd21" in at.error[0].value
    button(at, "Understood").click().run()
    assert not at.error


def test_search_and_filters_narrow_the_gallery(filled: Workspace, open_page: Open):
    at = open_page(filled, "adapters")
    assert "9 adapters" in texts(at)
    button(at, "Filter").click().run()
    at.selectbox(key="filter-family").set_value("sd21").run()
    assert "1 adapter" in texts(at).splitlines()
    at.text_input(key="adapters-query").set_value("lanternoid").run()
    assert "Nothing fits" in texts(at)
    button(at, "Stable Diffusion 2.1").click().run()  # the chip takes its filter off
    assert "3 adapters" in texts(at)


def test_the_second_page_of_the_gallery(empty: Workspace, open_page: Open):
    many_adapters(empty, 60)
    at = open_page(empty, "adapters")
    for _ in range(2):
        button(at, "Next").click().run()
    assert not at.exception
    assert "Page 3 of 3" in texts(at)
    button(at, "Previous").click().run()
    assert "Page 2 of 3" in texts(at)
    at.text_input(key="adapters-query").set_value("ink").run()  # fewer results: back to the first page
    inky = sum(0 in (i % 10, i // 10 % 10, i % 7) for i in range(60))  # in the name, the trigger or a tag
    assert f"{inky} adapters" in texts(at)


def test_an_adapter_goes_to_the_trash_and_comes_back(filled: Workspace, open_page: Open):
    adapter = filled.catalog.get(Adapter, "ink wash")
    at = open_page(filled, "adapters", adapter=adapter.id)
    button(at, "To the trash").click().run()
    assert filled.catalog.get(Adapter, adapter.id).trashed_at is not None
    assert not filled.resolve(adapter.path).exists()
    button(at, "Take it out").click().run()
    assert filled.catalog.get(Adapter, adapter.id).trashed_at is None
    assert filled.resolve(filled.catalog.get(Adapter, adapter.id).path).exists()


def test_tags_note_and_rating_are_saved(filled: Workspace, open_page: Open):
    adapter = filled.catalog.get(Adapter, "zibbo")
    at = open_page(filled, "adapters", adapter=adapter.id)
    at.feedback[0].set_value(3).run()
    assert filled.catalog.get(Adapter, adapter.id).rating == 4
    field = {element.label: element for element in (*at.text_input, *at.text_area)}
    field["Tags"].set_value("robot, robot,  toy ")
    field["Note"].set_value("Wants a plain background.")
    button(at, "Save").click().run()
    changed = filled.catalog.get(Adapter, adapter.id)
    assert changed.tags == ("robot", "toy")
    assert changed.note == "Wants a plain background."


def test_a_bad_name_is_refused_in_one_line(filled: Workspace, open_page: Open):
    adapter = filled.catalog.get(Adapter, "zibbo")
    at = open_page(filled, "adapters", adapter=adapter.id)
    {element.label: element for element in at.text_input}["Name"].set_value("a/b")
    button(at, "Save").click().run()
    assert "path separator" in at.error[0].value
    assert filled.catalog.get(Adapter, adapter.id).name == "zibbo"


def test_provenance_leads_both_ways(filled: Workspace, open_page: Open):
    adapter = filled.catalog.get(Adapter, "neon signs")
    at = open_page(filled, "adapters", adapter=adapter.id)
    said = texts(at)
    assert "Where it comes from" in said
    assert "Made with it" in said
    run = open_page(filled, "runs", run=adapter.run_id)
    assert "What came out" in texts(run)


def test_pictures_are_dropped_captioned_and_left_out(empty: Workspace, open_page: Open):
    at = open_page(empty, "datasets", new="1")
    files = [
        (f"{i}.png", png(picture), "image/png") for i, (picture, _) in enumerate(demo_set("style", 4, 3))
    ]
    files += [("0.txt", b"a red ring", "text/plain"), ("5.svg.png", b"<svg/>", "image/png")]
    at.file_uploader[0].set_value(files).run()
    at.text_input(key="new-name").set_value("rings")
    at.text_input(key="new-trigger").set_value("neonsign")
    button(at, "Add").click().run()
    assert not at.exception
    dataset = empty.catalog.get(Dataset, "rings")
    images = empty.catalog.list(Image, dataset_id=dataset.id, order="position")
    assert [image.caption for image in images] == ["a red ring", "", "", ""]
    assert "5.svg.png was left out" in texts(at).replace("**", "")

    at = open_page(empty, "datasets", dataset=dataset.id)
    at.text_area(key=f"caption-{images[1].id}").set_value("a blue star").run()
    assert empty.catalog.get(Image, images[1].id).caption == "a blue star"
    at.button(key=f"drop-{images[3].id}").click().run()
    assert empty.catalog.get(Dataset, dataset.id).image_count == 3
    button(at, "Bring the last picture back").click().run()
    assert empty.catalog.get(Dataset, dataset.id).image_count == 4


def test_a_model_writes_the_captions_that_are_missing(
    empty: Workspace, open_page: Open, monkeypatch: pytest.MonkeyPatch
):
    from studio.datasets.captioners import run
    from studio.datasets.ingest import create_dataset, images_of

    class Child:
        """Answers as the real one does, without a model."""

        def __init__(self, ws: Workspace) -> None: ...

        def __enter__(self) -> "Child":
            return self

        def __exit__(self, *_: object) -> None: ...

        def ask(self, request: dict[str, Any]) -> None:
            asked.append(request)
            texts = {one["id"]: f"words {n}" for n, one in enumerate(request["pictures"])}
            self.answers = [{"phase": "captioning"}, {"captions": texts}, {"done": True}]

        def next(self, stop: object) -> dict[str, Any]:
            return self.answers.pop(0)

    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(run, "_Child", Child)
    uploads = [(f"{i}.png", png(picture)) for i, (picture, _) in enumerate(demo_set("style", 3, 3))]
    dataset = create_dataset(empty, "rings", [*uploads, ("0.txt", b"mine")]).dataset
    at = open_page(empty, "datasets", dataset=dataset.id)
    button(at, "Write captions").click().run()
    assert "2 pictures to caption" in texts(at)

    def form(dataset_id: str) -> None:  # a test cannot work inside of a dialog
        from registry.records import Dataset
        from studio.app import shell
        from studio.app.components.captioner import caption_form

        caption_form(shell.workspace().catalog.get(Dataset, dataset_id))

    at = AppTest.from_function(form, args=(dataset.id,)).run()
    at.text_input(key="captioner-model").set_value("a/b").run()
    button(at, "Start writing").click().run()
    assert not at.exception
    assert [image.caption for image in images_of(empty, dataset)] == ["mine", "words 0", "words 1"]
    assert asked[0]["options"]["model"] == "a/b"


def test_a_file_that_is_no_picture_is_refused_in_one_line(empty: Workspace, open_page: Open):
    at = open_page(empty, "datasets", new="1")
    at.file_uploader[0].set_value([("x.png", b"hello", "image/png")]).run()
    at.text_input(key="new-name").set_value("none")
    button(at, "Add").click().run()
    assert not at.exception
    assert "x.png" in at.error[0].value.replace("\\", "")
    assert empty.catalog.count(Dataset) == 0


def test_a_picture_gets_a_mask_and_a_wrong_one_is_refused_in_one_line(filled: Workspace, open_page: Open):
    dataset = filled.catalog.get(Dataset, "zibbo")
    image = filled.catalog.list(Image, dataset_id=dataset.id, order="position", limit=1)[0]
    at = open_page(filled, "datasets", dataset=dataset.id)
    assert "001-masklabel.png" in texts(at)
    at = AppTest.from_function(mask_form_of, kwargs={"dataset_id": dataset.id, "image_id": image.id})
    for shape, fits in (((image.width * 2, image.height), False), ((image.width, image.height), True)):
        buffer = io.BytesIO()
        Pillow.new("L", shape, 255).save(buffer, "PNG")
        at.run().file_uploader[0].set_value([("m.png", buffer.getvalue(), "image/png")]).run()
        button(at, "Use this mask").click().run()
        assert not at.exception
        assert bool(filled.catalog.get(Image, image.id).mask) is fits
        assert bool(at.error) is not fits
    button(at, "No mask").click().run()
    assert not filled.catalog.get(Image, image.id).mask


def mask_form_of(dataset_id: str, image_id: str) -> None:
    """A page of the dialog alone: AppTest closes dialogs at each run."""
    from registry.records import Dataset, Image
    from studio.app import shell
    from studio.app.components.mask_dialog import mask_form

    catalog = shell.workspace().catalog
    mask_form(catalog.get(Dataset, dataset_id), catalog.get(Image, image_id))


def test_training_starts_with_the_choices_made(filled: Workspace, open_page: Open):
    dataset = filled.catalog.get(Dataset, "zibbo")
    at = open_page(filled, "train", dataset=dataset.id, goal="character", base="pocket")
    at.segmented_control(key="train-effort").set_value("quick").run()
    whole = preset_by_name("pocket-character").train.max_steps
    assert f"{whole * 2 // 5} steps instead of {whole}" in texts(at).replace("*", "")
    at.text_input(key="train-name").set_value("zibbo two")
    button(at, "Start training").click().run()
    assert not at.exception
    run = filled.catalog.get(Run, "zibbo two")
    assert (run.state, run.goal, run.dataset_id) == (RunState.QUEUED, "character", dataset.id)
    assert run.steps == whole * 2 // 5
    assert run.recipe["data"]["trigger"] == "zibbo"


def test_sampling_puts_a_job_into_the_queue(filled: Workspace, open_page: Open):
    at = open_page(filled, "sample")
    before = filled.catalog.count(Sample)
    at.text_area(key="s-prompt").set_value("a red circle")
    at.number_input(key="s-seed").set_value(77)
    at.toggle(key="s-lock").set_value(True)
    at.toggle(key="s-partial").set_value(True)
    at.number_input(key="s-clip_skip").set_value(2)
    at.slider(key="s-guidance_rescale").set_value(0.5)
    button(at, "Make pictures").click().run()
    assert not at.exception
    assert filled.catalog.count(Sample) == before + 1
    sample = filled.catalog.list(Sample, limit=1)[0]
    assert sample.request["prompt"] == "a red circle"
    assert [sample.request[name] for name in ("partial", "clip_skip", "guidance_rescale")] == [True, 2, 0.5]
    assert sample.request["seed"] == 77
    assert (sample.request["width"], sample.request["height"]) == (64, 64)
    job = filled.catalog.list(Job, kind=JobKind.SAMPLE, limit=1)[0]
    assert job.subject_id == sample.id
    button(at, "Stop").click().run()
    assert filled.catalog.get(Job, job.id).state == "cancelled"


def test_a_trigger_chip_writes_the_word_into_the_prompt(filled: Workspace, open_page: Open):
    adapter = filled.catalog.get(Adapter, "neon signs")
    at = open_page(filled, "sample", adapter=adapter.id)
    assert at.text_area(key="s-prompt").value == "neonsign"
    at.text_area(key="s-prompt").set_value("a red circle").run()
    button(at, "neonsign").click().run()
    assert at.text_area(key="s-prompt").value == "a red circle, neonsign"


def test_foreign_names_are_never_markdown(filled: Workspace, open_page: Open):
    adapter = filled.catalog.get(Adapter, "<b>bold</b> **name** :smile:")
    at = open_page(filled, "adapters", adapter=adapter.id)
    assert at.title[0].value == r"\<b\>bold\<\/b\> \*\*name\*\* \:smile\:"


def test_removing_a_base_that_is_ours_is_not_offered(filled: Workspace, open_page: Open):
    at = open_page(filled, "bases")
    assert not [b for b in at.button if b.label == "Remove"]
    assert {base.name for base in filled.catalog.list(Base)} == {
        "pocket",
        "pocket-xl",
        "pocket-sd35",
        "pocket-flux",
    }


def reruns_quickly(at: AppTest) -> None:
    took: list[float] = []
    for _ in range(3):
        started = time.perf_counter()
        at.run()
        took.append(time.perf_counter() - started)
    assert not at.exception
    assert min(took) < 0.2, took


@pytest.mark.parametrize("page", PAGES)
def test_a_rerun_takes_less_than_200_ms_with_a_thousand_adapters(
    filled: Workspace, open_page: Open, page: str
):
    many_adapters(filled, 1000)
    at = open_page(filled, page)
    reruns_quickly(at)


def test_importing_every_page_leaves_torch_alone():
    modules = [f"studio.app.app_pages.{page}" for page in PAGES] + ["studio.app.server", "studio.app.forms"]
    code = f"import sys\nfor m in {modules!r}: __import__(m)\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_large_photograph_gets_a_small_picture_once(empty: Workspace):
    from studio.app.thumbs import SIDE, thumbnail

    buffer = io.BytesIO()
    Pillow.new("RGB", (2000, 1000), (200, 30, 30)).save(buffer, "JPEG")
    blob = empty.blobs.put(buffer.getvalue())
    cache = empty.home / "cache" / "thumbs"
    small = thumbnail(empty.blobs.path(blob), cache, key=blob)
    with Pillow.open(small) as picture:
        assert picture.size == (SIDE, SIDE // 2)
    assert thumbnail(empty.blobs.path(blob), cache, key=blob) == small


def test_branching_from_a_checkpoint_that_is_gone_says_so_in_one_line(filled: Workspace, open_page: Open):
    run = next(r for r in filled.catalog.list(Run) if r.state is RunState.FINISHED)
    at = open_page(filled, "runs", run=run.id)
    button(at, "Branch").click().run()
    assert not at.exception
    assert "no checkpoint at step" in at.error[0].value.replace("\\", "")
