"""Prompts, contact sheet and report of the demo, without training."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from registry.errors import BadInput
from registry.formats.export import ExportReport
from registry.formats.tools import ToolReport
from registry.records import Adapter, Dataset
from studio.compare.style import StyleDistance, StyleFigures
from studio.demo.prompts import COUNT, PROMPTS, held_out_prompts
from studio.demo.report import DemoFacts, report_html, result_table
from studio.demo.run import OWN_PICTURES, OWN_SEED
from studio.demo.sheet import CELL, Panel, contact_sheet
from studio.pocket.pictures import TRIGGERS, demo_set
from studio.sheets import enlarge
from trainers.recipe import preset_by_name

FIGURES = StyleFigures(*(StyleDistance(d, d, d, d) for d in (1.0, 0.4, 0.2)), closed=0.75)


def test_prompts_are_no_training_captions_and_keep_their_number():
    captions = [caption for _, caption in demo_set("style", OWN_PICTURES, OWN_SEED)]
    prompts = held_out_prompts(TRIGGERS["style"], captions)
    assert len(prompts) == COUNT
    assert not {prompt.lower() for prompt in prompts} & {caption.lower() for caption in captions}
    first = prompts[0]
    assert first not in held_out_prompts(TRIGGERS["style"], [*captions, first.upper()])


def test_a_folder_captioned_with_our_prompts_is_refused():
    with pytest.raises(BadInput, match="caption them otherwise"):
        held_out_prompts("x", [f"{words}, x" for words in PROMPTS])


def test_small_pictures_are_enlarged_by_whole_pixels():
    picture = Image.new("RGB", (64, 64), "white")
    picture.putpixel((10, 20), (255, 0, 0))
    large = enlarge(picture, CELL)
    assert large.size == (CELL, CELL)
    factor = CELL // 64
    red = [(x, y) for x in range(CELL) for y in range(CELL) if large.getpixel((x, y)) == (255, 0, 0)]
    assert red == [(x, y) for x in range(10 * factor, 11 * factor) for y in range(20 * factor, 21 * factor)]
    assert enlarge(Image.new("RGBA", (900, 300)), CELL).size == (CELL, CELL)


def test_the_sheet_shows_every_panel_and_no_word_outside_its_cell():
    green = [Image.new("RGB", (64, 64), (0, 200, 0))] * 9
    words = ["an extraordinarily long caption that goes on and on without saying anything at all"] * 9
    one = contact_sheet([Panel("a", "b", green, words)])
    three = contact_sheet([Panel("a", "b", green, words)] * 3)
    assert three.height == one.height
    assert three.width > 2.9 * (one.width - 100)
    share = sum(pixel == (0, 200, 0) for pixel in one.get_flattened_data()) / (one.width * one.height)
    assert share == pytest.approx(9 * CELL**2 / (one.width * one.height), rel=0.01)


def test_a_single_endless_word_is_cut():
    contact_sheet([Panel("a", "b", [Image.new("RGB", (64, 64))], ["x" * 400])])


class Reader(HTMLParser):
    """Collects tags and where they point to."""

    def __init__(self):
        super().__init__()
        self.tags, self.sources = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in {"src", "href"}]


def facts(trigger="zig"):
    tool = ToolReport(tool="diffusers", verdict="loads", modules=5, matched=5, missing=(), worst_error=0.0)
    other = ToolReport(tool="other", verdict="no", modules=5, matched=0, missing=("a",), worst_error=0.0)
    export = ExportReport(
        path="/somewhere/a-kohya.safetensors", files=(), layout="kohya", family="sd15", dtype="fp32",
        bytes=2048, sha256="", tensor_sha256="", modules=5, matched=5, worst_error=0.0, tolerance=1e-5,
        tools=(tool, other),
    )  # fmt: skip
    pictures = [Image.new("RGB", (64, 64), (i * 10, 0, 0)) for i in range(3)]
    return DemoFacts(
        dataset=Dataset(name="signs", trigger=trigger),
        adapter=Adapter(name="signs", tensor_sha256="", file_sha256="", path=""),
        recipe=preset_by_name("pocket-style"),
        captions=["one", "two", "<script>alert(1)</script>"],
        training=pictures,
        prompts=["a star", "a ring", "a & b"],
        plain=pictures,
        styled=pictures,
        style=FIGURES,
        exports={"kohya": export},
        seconds={"training": 61.0, "sampling": 9.5},
    )


def test_the_report_is_one_file_that_asks_for_nothing_and_escapes_what_people_wrote():
    page = report_html(facts(trigger='"><img src=http://x>'))
    reader = Reader()
    reader.feed(page)
    assert reader.sources
    assert all(source.startswith("data:image/png;base64,") for source in reader.sources)
    assert "script" not in reader.tags
    assert not re.search(r"url\(|@import", page)
    assert "prefers-color-scheme: dark" in page
    assert reader.tags.count("img") == 3 + 2 * 3
    for text in ("75%", "a-kohya.safetensors", "5 of 5", "training: 61 s", "a &amp; b", "noise_offset"):
        assert text in page, text
    assert "diffusers</td>" in page
    assert "other" not in page.partition("loads in")[2].partition("</table>")[0]


def test_the_table_holds_the_three_distances_and_the_share():
    text = result_table(FIGURES, {"training": 61.0, "sampling": 9.4})
    assert re.search(r"the base +1\.00 +1\.00 +1\.00 +1\.00", text)
    assert re.search(r"with the adapter +0\.40", text)
    assert "75%" in text
    assert "together 70 s" in text
    assert "\x1b" not in text


def test_the_stylesheet_ships_with_the_package():
    pyproject = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    assert '"demo/*.css"' in pyproject
