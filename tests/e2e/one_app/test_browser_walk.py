"""The whole job in a real browser: pictures, captions, training, the adapter, samples, export."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from playwright.sync_api import Browser, Page, expect

from registry.formats.load import load_adapter
from registry.records import Adapter, Dataset, Image, Run, Sample
from studio.pocket.pictures import demo_set
from studio.workspace import Workspace
from tests.support.browser import only, page_at, write
from trainers.recipe import preset_by_name

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PICTURES = 12
STEPS = 12
RECIPE = f"""preset = "pocket-style"
[train]
max_steps = {STEPS}
[checkpoints]
every = {STEPS // 2}
[preview]
every = {STEPS // 2}
steps = 4
prompts = ["a red circle, neonsign"]
"""
MINUTES = 60_000  # milliseconds


@pytest.fixture(scope="module")
def page(address: str, chromium: Browser) -> Iterator[Page]:
    with page_at(address, within=chromium) as page:
        yield page


def press(page: Page, name: str) -> None:
    """Click a button by its name and let the page settle."""
    page.get_by_role("button", name=name, exact=True).first.click()


def uploads(folder: Path) -> list[Path]:
    """Twelve pictures; the first three have a caption in a text file."""
    folder.mkdir()
    files: list[Path] = []
    for index, (picture, caption) in enumerate(demo_set("style", PICTURES, 11)):
        path = folder / f"{index:02d}.png"
        picture.save(path)
        files.append(path)
        if index < 3:
            path.with_suffix(".txt").write_text(caption)
            files.append(path.with_suffix(".txt"))
    return files


def test_the_whole_job(workspace: Workspace, address: str, page: Page, tmp_path: Path):
    dataset = drop_pictures(workspace, page, tmp_path)
    write_captions(workspace, page, dataset)
    run = train(workspace, page, tmp_path)
    adapter = see_adapter(workspace, page, run)
    compare_with_and_without(workspace, page, adapter)
    export(workspace, address, page, adapter, tmp_path)


def drop_pictures(workspace: Workspace, page: Page, folder: Path) -> Dataset:
    press(page, "Add your pictures")
    expect(page.get_by_role("heading", name="Add pictures")).to_be_visible()
    only(page.get_by_role("textbox", name="Name", exact=True)).fill("walk")
    only(page.get_by_role("textbox", name="Trigger word", exact=True)).fill("neonsign")
    page.locator("input[type=file]").set_input_files(uploads(folder / "pictures"))
    expect(page.get_by_role("button", name="Add", exact=True)).to_be_enabled()
    press(page, "Add")
    expect(page.get_by_role("heading", name="walk")).to_be_visible()
    dataset = workspace.catalog.get(Dataset, "walk")
    assert dataset.image_count == PICTURES
    assert dataset.trigger == "neonsign"
    return dataset


def write_captions(workspace: Workspace, page: Page, dataset: Dataset) -> None:
    field = page.get_by_role("textbox", name="Caption of picture 6", exact=True)
    write(field, "a shape in neon, neonsign")
    expect(page.get_by_text("Caption saved")).to_be_visible()
    images = {image.name: image for image in workspace.catalog.list(Image, dataset_id=dataset.id)}
    assert images["05.png"].caption == "a shape in neon, neonsign"
    assert images["00.png"].caption.endswith("neonsign")


def train(workspace: Workspace, page: Page, folder: Path) -> Run:
    press(page, "Train on these")
    expect(page.get_by_role("heading", name="What it will cost")).to_be_visible()
    only(page.get_by_text("Everything", exact=True)).click()
    only(page.get_by_text("As a file (TOML)")).click()
    whole = preset_by_name("pocket-style").train.max_steps
    recipe = folder / "walk.toml"
    recipe.write_text(RECIPE)
    page.locator("input[type=file]").set_input_files(recipe)
    expect(page.get_by_text(f"{STEPS} instead of {whole}")).to_be_visible()
    only(page.get_by_role("textbox", name="Name of the adapter", exact=True)).fill("walked")
    press(page, "Start training")
    expect(page.get_by_role("heading", name="walked")).to_be_visible()
    expect(page.get_by_text("Finished").first).to_be_visible(timeout=5 * MINUTES)
    # While the page changes from live to finished, the old film strip may stand beside the new one.
    expect(page.get_by_label("a red circle, neonsign · base without the adapter")).to_have_count(1)
    expect(page.get_by_label(f"a red circle, neonsign · step {STEPS}")).to_be_visible()
    return workspace.catalog.get(Run, "walked")


def see_adapter(workspace: Workspace, page: Page, run: Run) -> Adapter:
    made = workspace.catalog.list(Adapter, run_id=run.id)
    assert [adapter.step for adapter in made] == [STEPS]
    only(page.get_by_role("button", name="walked", exact=True)).click()
    expect(page.get_by_role("heading", name="Where it comes from")).to_be_visible()
    expect(page.get_by_text("While it learned")).to_be_visible()
    return made[0]


def compare_with_and_without(workspace: Workspace, page: Page, adapter: Adapter) -> None:
    press(page, "Make pictures")
    prompt = page.get_by_role("textbox", name="What to draw (prompt)", exact=True)
    expect(prompt).to_have_value("neonsign")
    write(prompt, "a red circle, neonsign")
    only(page.get_by_text("Lock", exact=True)).click()
    pictures: list[np.ndarray] = []
    for expected in (1, 2):
        only(page.get_by_role("button", name="Make pictures")).click()
        expect(page.get_by_role("button", name="Use the settings of this picture")).to_have_count(
            expected, timeout=3 * MINUTES
        )
        sample = workspace.catalog.list(Sample, limit=1)[0]
        assert [use.adapter_id for use in sample.adapters] == ([adapter.id] if expected == 1 else [])
        with Pillow.open(io.BytesIO(workspace.resolve(sample.files[0]).read_bytes())) as picture:
            pictures.append(np.asarray(picture.convert("RGB"), dtype=np.float64))
        if expected == 1:
            press(page, "Leave out")
            expect(page.get_by_text("Strength", exact=True)).to_have_count(0)
    assert pictures[0].shape == (64, 64, 3)
    assert np.abs(pictures[0] - pictures[1]).mean() > 0.5  # of 255: twelve steps already change the picture


def export(workspace: Workspace, address: str, page: Page, adapter: Adapter, folder: Path) -> None:
    page.goto(f"{address}/adapters?adapter={adapter.id}")
    press(page, "Export")
    press(page, "Write and check")
    with page.expect_download() as download:
        only(page.get_by_role("link", name="Save walked")).click()
    saved = folder / "saved.safetensors"
    download.value.save_as(saved)
    theirs, _, _ = load_adapter(saved, "sd15")
    ours, _, _ = load_adapter(workspace.resolve(adapter.path), "sd15")
    assert theirs.modules.keys() == ours.modules.keys()
    for name in ours.modules:
        np.testing.assert_allclose(theirs.delta(name), ours.delta(name), rtol=1e-5, atol=1e-7)
