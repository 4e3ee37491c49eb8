"""The Sample page in a real browser: adapters, a picture to start from, the brush, settings put back."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from playwright.sync_api import Page, expect, sync_playwright

from registry.records import Adapter, Sample
from studio.workspace import Workspace
from tests.app.screenshots import free_port, wait_until_healthy
from tests.support.browser import find_browser, launch_arguments
from tests.support.sampling import add_adapter

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SIDE = 64  # pixels of the pocket base's pictures
SECONDS = 1000  # milliseconds


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace.open(tmp_path_factory.mktemp("walk") / "workspace")
    for seed, name in enumerate(("first", "second")):
        add_adapter(workspace, name, seed=seed)
    return workspace


@pytest.fixture(scope="module")
def page(workspace: Workspace) -> Iterator[Page]:
    """The Sample page of `studio app`, as a person starts it."""
    port = free_port()
    command = [sys.executable, "-m", "studio.cli", "--home", str(workspace.home), "app", "--port", str(port)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    browser_path = find_browser()
    assert browser_path, "no Chromium: run `make browser`"
    with (
        subprocess.Popen(
            [*command, "--no-browser"], env=environment, stderr=subprocess.PIPE, text=True
        ) as process,
        sync_playwright() as playwright,
    ):
        try:
            wait_until_healthy(f"http://127.0.0.1:{port}", process)
            browser = playwright.chromium.launch(executable_path=browser_path, args=launch_arguments())
            page = browser.new_page(viewport={"width": 1280, "height": 1000})
            page.set_default_timeout(30 * SECONDS)
            page.goto(f"http://127.0.0.1:{port}/sample")
            yield page
            browser.close()
        finally:
            process.terminate()
            process.wait(60)


def test_the_sample_page(workspace: Workspace, page: Page):
    drawn = with_two_adapters(workspace, page)
    start = from_a_picture(workspace, page, drawn)
    painted = a_part_with_the_brush(workspace, page, start)
    settings_come_back(workspace, page, painted)


def with_two_adapters(workspace: Workspace, page: Page) -> Sample:
    for name in ("first", "second"):
        page.get_by_role("button", name="Add an adapter", exact=True).click()
        page.get_by_role("dialog").get_by_role("button", name=name).first.click()
        expect(page.get_by_role("dialog")).to_have_count(0)
    prompt = page.get_by_role("textbox", name="What to draw (prompt)", exact=True)
    prompt.fill("a red circle")
    prompt.blur()
    page.get_by_text("More", exact=True).last.click()
    slide(page, "How many steps (inference steps)", "Home", 7)  # 1 + 7
    sample = make(workspace, page, 1)
    assert sample.request["steps"] == 8
    ids = {workspace.catalog.get(Adapter, name).id for name in ("first", "second")}
    assert {use.adapter_id for use in sample.adapters} == ids
    return sample


def from_a_picture(workspace: Workspace, page: Page, drawn: Sample) -> Sample:
    page.get_by_role("button", name="Start from this").first.click()
    expect(page.get_by_text("A picture made here")).to_be_visible()
    slide(page, "How much may change (denoising strength)", "Home", 50)
    sample = make(workspace, page, 2)
    assert sample.request["strength"] == 0.5
    assert (workspace.home / sample.request["image"]).read_bytes() == file_of(workspace, drawn).read_bytes()
    difference = np.abs(pixels(file_of(workspace, sample)) - pixels(file_of(workspace, drawn)))
    assert difference.mean() > 0.5
    return sample


def a_part_with_the_brush(workspace: Workspace, page: Page, start: Sample) -> Sample:
    """Two strokes on the left half, one on the right that is erased again."""
    page.get_by_role("button", name="Start from this").first.click()
    page.get_by_text("Change only a part (inpaint)").click()
    slide(page, "Soft edge in pixels (mask blur)", "Home", 0)
    slide(page, "How much may change (denoising strength)", "End", 0)
    canvas = page.locator("canvas[role=img]")
    canvas.scroll_into_view_if_needed()
    expect(page.get_by_text("Paint over what is to change")).to_be_visible()
    stroke(page, (0.1, 0.2), (0.35, 0.2))
    stroke(page, (0.1, 0.6), (0.35, 0.8))
    stroke(page, (0.8, 0.5), (0.8, 0.5))
    page.get_by_role("button", name="Undo", exact=True).click()
    stroke(page, (0.8, 0.2), (0.8, 0.4))
    page.get_by_role("button", name="Erase", exact=True).click()
    stroke(page, (0.8, 0.1), (0.8, 0.5), (0.75, 0.3), (0.85, 0.3))
    sample = make(workspace, page, 3)
    mask = pixels(workspace.home / sample.request["mask"]).mean(axis=2)
    assert mask.shape == (SIDE, SIDE)
    assert mask[12, 14] == 255
    assert mask[44, 14] == 255  # on the way from (0.1, 0.6) to (0.35, 0.8)
    assert mask[:, SIDE // 2 :].max() == 0
    assert 0.05 < (mask > 0).mean() < 0.4
    assert (workspace.home / sample.request["image"]).read_bytes() == file_of(workspace, start).read_bytes()
    before, after = (pixels(file_of(workspace, one)) for one in (start, sample))
    different = np.abs(before - after).max(axis=2)
    assert different[mask == 0].max() == 0
    assert (different[mask == 255] > 0).mean() > 0.9
    return sample


def settings_come_back(workspace: Workspace, page: Page, painted: Sample) -> None:
    """After the form was emptied by opening it anew, the picture that was written says everything."""
    page.reload()
    page.get_by_role("button", name="Settings of a picture").click()
    field = page.get_by_test_id("stFileUploader").filter(has_text="Drop a picture that says how it was made")
    expect(field).to_be_visible()
    field.locator("input[type=file]").set_input_files(file_of(workspace, painted))
    both = page.get_by_text("The picture of that sample")  # what it started from, and the mask
    expect(both).to_have_count(2, timeout=20 * SECONDS)
    prompt = page.get_by_role("textbox", name="What to draw (prompt)", exact=True)
    expect(prompt).to_have_value("a red circle")
    expect(page.get_by_text("Strength", exact=True)).to_have_count(2)
    page.keyboard.press("Escape")
    again = make(workspace, page, 4)
    assert file_of(workspace, again).read_bytes() != b""
    assert np.array_equal(pixels(file_of(workspace, again)), pixels(file_of(workspace, painted)))
    moved = {name: painted.request[name].replace(painted.id, again.id) for name in ("image", "mask")}
    assert again.request == painted.request | moved


def make(workspace: Workspace, page: Page, count: int) -> Sample:
    """Press the button and wait for the picture."""
    page.get_by_role("button", name="Make pictures").click()
    made = page.get_by_role("button", name="Use the settings of this picture")
    expect(made).to_have_count(count, timeout=60 * SECONDS)
    return workspace.catalog.list(Sample, limit=1)[0]


def slide(page: Page, label: str, end: str, steps: int) -> None:
    """A slider by its keys: to its end, then `steps` to the right."""
    slider = page.get_by_role("slider", name=label)
    slider.press(end)
    for _ in range(steps):
        slider.press("ArrowRight")


def stroke(page: Page, *points: tuple[float, float]) -> None:
    """With the mouse, through points given as parts of the picture."""
    box = page.locator("canvas[role=img]").bounding_box()
    assert box
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=6)
    page.mouse.up()


def pixels(path: Path) -> np.ndarray:
    with Pillow.open(path) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.float64)


def file_of(workspace: Workspace, sample: Sample) -> Path:
    return workspace.resolve(sample.files[0])
