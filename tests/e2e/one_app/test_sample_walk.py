"""The Sample page in a real browser: adapters, a picture to start from, the brush, settings put back."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from playwright.sync_api import Browser, Page, expect

from registry.records import Adapter, Sample
from studio.workspace import Workspace
from tests.support.browser import only, page_at, rest, write
from tests.support.sampling import add_adapter

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SIDE = 64  # pixels of the pocket base's pictures
SECONDS = 1000  # milliseconds


@pytest.fixture(scope="module", autouse=True)
def _adapters(workspace: Workspace) -> None:
    for seed, name in enumerate(("first", "second")):
        add_adapter(workspace, name, seed=seed)


@pytest.fixture(scope="module")
def page(address: str, chromium: Browser) -> Iterator[Page]:
    with page_at(f"{address}/sample", height=1000, within=chromium) as page:
        yield page


def test_the_sample_page(workspace: Workspace, page: Page):
    drawn = with_two_adapters(workspace, page)
    start = from_a_picture(workspace, page, drawn)
    painted = a_part_with_the_brush(workspace, page, start)
    settings_come_back(workspace, page, painted)


def with_two_adapters(workspace: Workspace, page: Page) -> Sample:
    for name in ("first", "second"):
        only(page.get_by_role("button", name="Add an adapter", exact=True)).click()
        page.get_by_role("dialog").get_by_role("button", name=name).first.click()
        expect(page.get_by_role("dialog")).to_have_count(0)
    rest(page)
    page.get_by_text("More", exact=True).last.click()
    slide(page, "How many steps (inference steps)", "Home", 7)  # 1 + 7
    prompt = page.get_by_role("textbox", name="What to draw (prompt)", exact=True)
    write(prompt, "a red circle")
    sample = make(workspace, page)
    assert sample.request["steps"] == 8
    ids = {workspace.catalog.get(Adapter, name).id for name in ("first", "second")}
    assert {use.adapter_id for use in sample.adapters} == ids
    return sample


def from_a_picture(workspace: Workspace, page: Page, drawn: Sample) -> Sample:
    page.get_by_role("button", name="Start from this").first.click()
    expect(page.get_by_text("A picture made here")).to_be_visible()
    slide(page, "How much may change (denoising strength)", "Home", 50)
    sample = make(workspace, page)
    assert sample.request["strength"] == 0.5
    assert (workspace.home / sample.request["image"]).read_bytes() == file_of(workspace, drawn).read_bytes()
    difference = np.abs(pixels(file_of(workspace, sample)) - pixels(file_of(workspace, drawn)))
    assert difference.mean() > 0.5
    return sample


def a_part_with_the_brush(workspace: Workspace, page: Page, start: Sample) -> Sample:
    """Two strokes on the left half, one on the right that is erased again."""
    page.get_by_role("button", name="Start from this").first.click()
    only(page.get_by_text("Change only a part (inpaint)")).click()
    slide(page, "Soft edge in pixels (mask blur)", "Home", 0)
    slide(page, "How much may change (denoising strength)", "End", 0)
    canvas = page.locator("canvas[role=img]")
    canvas.scroll_into_view_if_needed()
    expect(page.get_by_text("Paint over what is to change")).to_be_visible()
    stroke(page, (0.1, 0.2), (0.35, 0.2))
    stroke(page, (0.1, 0.6), (0.35, 0.8))
    stroke(page, (0.8, 0.5), (0.8, 0.5))
    only(page.get_by_role("button", name="Undo", exact=True)).click()
    stroke(page, (0.8, 0.2), (0.8, 0.4))
    only(page.get_by_role("button", name="Erase", exact=True)).click()
    stroke(page, (0.8, 0.1), (0.8, 0.5), (0.75, 0.3), (0.85, 0.3))
    sample = make(workspace, page)
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
    only(page.get_by_role("button", name="Settings of a picture")).click()
    field = page.get_by_test_id("stFileUploader").filter(has_text="Drop a picture that says how it was made")
    expect(field).to_be_visible()
    field.locator("input[type=file]").set_input_files(file_of(workspace, painted))
    both = page.get_by_text("The picture of that sample")  # what it started from, and the mask
    expect(both).to_have_count(2)
    prompt = page.get_by_role("textbox", name="What to draw (prompt)", exact=True)
    expect(prompt).to_have_value("a red circle")
    expect(page.get_by_text("Strength", exact=True)).to_have_count(2)
    page.keyboard.press("Escape")
    again = make(workspace, page)
    assert file_of(workspace, again).read_bytes() != b""
    assert np.array_equal(pixels(file_of(workspace, again)), pixels(file_of(workspace, painted)))
    moved = {name: painted.request[name].replace(painted.id, again.id) for name in ("image", "mask")}
    # A picture says how the base's weights were kept, where the form left it open.
    assert again.request == painted.request | moved | {"precision": "whole"}


def make(workspace: Workspace, page: Page) -> Sample:
    """Press the button and wait for the picture."""
    made = page.get_by_role("button", name="Use the settings of this picture")
    before = made.count()
    only(page.get_by_role("button", name="Make pictures")).click()
    expect(made).to_have_count(before + 1, timeout=60 * SECONDS)
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
