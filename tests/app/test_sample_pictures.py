"""The form of the Sample page with pictures: to start from, masks, pictures that steer; further passes."""

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pixels
from streamlit.testing.v1 import AppTest

from registry.records import Base, Sample
from studio.app.components.brush import _mask_of as said_of
from studio.app.components.given import Given, take, written
from studio.control_facts import CONTROLNET
from studio.sampling.metadata.writing import write_picture
from studio.sampling.request import SampleRequest
from studio.sampling.submit import submit
from studio.workspace import Workspace
from tests.app.conftest import Open
from tests.support import modes


def png(size: tuple[int, int] = (48, 32), mode: str = "RGB") -> bytes:
    """A file of (width, height)."""
    buffer = io.BytesIO()
    modes.picture((size[1], size[0])).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def white_in_the_middle(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    modes.mask((size[1], size[0])).save(buffer, "PNG")
    return buffer.getvalue()


def drop(at: AppTest, start: str, data: bytes, name: str = "holiday.png") -> None:
    """Drop a file into the field whose key begins so."""
    field = next(one for one in at.file_uploader if (one.key or "").startswith(start))
    field.set_value([(name, data, "image/png")]).run()
    assert not at.exception


def press(at: AppTest, label: str = "Make pictures") -> None:
    next(one for one in at.button if one.label == label).click().run()
    assert not at.exception


def newest(ws: Workspace) -> Sample:
    return ws.catalog.list(Sample, limit=1)[0]


def errors(at: AppTest) -> str:
    return " ".join(error.value for error in at.error).replace("\\", "")


def texts(at: AppTest) -> str:
    return " ".join(item.value for item in at.markdown).replace("\\", "")


def network(ws: Workspace, name: str, variant: str) -> Base:
    """A ControlNet of the catalog, as far as asking for pictures looks at it."""
    (ws.home / "nets" / name).mkdir(parents=True)
    return ws.catalog.add(
        Base(
            name=name, family="sd15", part=CONTROLNET, variant=variant, kind="folder", location=f"nets/{name}"
        )
    )


def test_image_to_image_takes_the_shape_of_the_picture(filled: Workspace, open_page: Open):
    at = open_page(filled, "sample")
    drop(at, "s-start-file", png((48, 32)))
    assert "holiday.png" in texts(at)
    at.slider(key="s-strength").set_value(0.4).run()
    press(at)
    request = newest(filled).request
    assert (request["width"], request["height"], request["strength"]) == (48, 32, 0.4)
    assert request["image"] == f"samples/{newest(filled).id}/image.png"
    assert filled.resolve(request["image"]).read_bytes() == png((48, 32))
    press(at, "Take it out")
    press(at)
    assert newest(filled).request["image"] == ""
    assert newest(filled).request["width"] == 64


def test_what_is_no_picture_is_refused_in_a_line_and_nothing_is_queued(filled: Workspace, open_page: Open):
    before = filled.catalog.count(Sample)
    at = open_page(filled, "sample")
    drop(at, "s-start-file", b"hello", "letter.png")
    assert "letter.png" in errors(at)
    assert not any(one.label == "Take it out" for one in at.button)
    drop(at, "s-start-file", png())
    assert "letter.png" not in errors(at)
    at.toggle(key="s-part").set_value(True).run()
    press(at)
    assert "mask: is empty" in errors(at)
    drop(at, "s-mask-file", png((20, 60), "L"), "m.png")
    press(at)
    assert "m.png: is 20x60 pixels, its picture 48x32" in errors(at)
    at.slider(key="s-strength").set_value(0.01).run()
    press(at)
    assert "strength 0.01: leaves no step" in errors(at)
    assert filled.catalog.count(Sample) == before
    assert len(list((filled.home / "samples").iterdir())) == before


def test_a_mask_as_a_file(filled: Workspace, open_page: Open):
    at = open_page(filled, "sample")
    drop(at, "s-start-file", png())
    at.toggle(key="s-part").set_value(True).run()
    drop(at, "s-mask-file", white_in_the_middle((48, 32)), "m.png")
    at.slider(key="s-mask_blur").set_value(0)
    at.selectbox(key="s-mask_content").set_value("noise")
    at.toggle(key="s-only_masked").set_value(True).run()
    at.slider(key="s-mask_padding").set_value(8).run()
    press(at)
    request = newest(filled).request
    assert request["mask"] == f"samples/{newest(filled).id}/mask.png"
    assert (request["mask_blur"], request["mask_content"]) == (0, "noise")
    assert (request["only_masked"], request["mask_padding"], request["keep_unmasked"]) == (True, 8, True)


def test_more_at_its_sides_in_the_shape_of_both(filled: Workspace, open_page: Open):
    at = open_page(filled, "sample")
    drop(at, "s-start-file", png((48, 32)))
    at.toggle(key="s-sides").set_value(True).run()
    at.number_input(key="s-right").set_value(16)
    at.number_input(key="s-bottom").set_value(32).run()
    at.selectbox(key="s-mask_content").set_value("fill").run()
    press(at)
    request = newest(filled).request
    assert (request["outpaint"], request["mask"], request["mask_content"]) == ([0, 0, 16, 32], "", "fill")
    assert (request["width"], request["height"]) == (64, 64)
    again = open_page(filled, "sample", sample=f"{newest(filled).id}/0")
    press(again)
    assert newest(filled).request["outpaint"] == [0, 0, 16, 32]


def test_larger_in_tiles_of_the_bases_own_size(filled: Workspace, open_page: Open):
    at = open_page(filled, "sample")
    drop(at, "s-start-file", png((96, 64)))
    at.toggle(key="s-part").set_value(True).run()
    at.toggle(key="s-upscale").set_value(True).run()
    assert not any(one.key in {"s-part", "s-sides", "s-follow"} for one in at.toggle)
    at.slider(key="s-upscale_scale").set_value(1.5).run()
    assert at.slider(key="s-upscale_overlap").max == 32
    press(at)
    request = newest(filled).request
    assert request["upscale"] == {"scale": 1.5, "overlap": 8}
    assert (request["width"], request["height"], request["mask"]) == (64, 64, "")
    again = open_page(filled, "sample", sample=f"{newest(filled).id}/0")
    press(again)
    assert newest(filled).request["upscale"] == {"scale": 1.5, "overlap": 8}


def test_all_settings_with_pictures_come_back(filled: Workspace, open_page: Open, tmp_path: Path):
    net = network(filled, "edges", "canny")
    (tmp_path / "a.png").write_bytes(png((64, 64)))
    (tmp_path / "m.png").write_bytes(white_in_the_middle((64, 64)))
    values: dict[str, Any] = {
        "image": str(tmp_path / "a.png"), "strength": 0.63, "mask": str(tmp_path / "m.png"), "mask_blur": 7,
        "mask_content": "fill", "only_masked": True, "mask_padding": 9, "keep_unmasked": False,
        "controls": ({"kind": "canny", "image": str(tmp_path / "a.png"), "weight": 0.7, "start": 0.1,
                      "end": 0.8, "guess": True, "preprocess": False},),
        "subseed": 99, "subseed_strength": 0.25, "seed": 12, "count": 2, "width": 64, "height": 64,
    }  # fmt: skip
    base = filled.catalog.get(Base, "pocket").id
    sample = submit(filled, SampleRequest(base=base, **values))
    at = open_page(filled, "sample", sample=f"{sample.id}/1")
    assert not at.exception
    assert texts(at).count("The picture of that sample") == 3
    press(at)
    again = newest(filled)
    assert again.id != sample.id
    changed = {"count": 1, "subseed": 100} | {
        name: sample.request[name].replace(sample.id, again.id) for name in ("image", "mask")
    }
    control = sample.request["controls"][0]
    assert control["model"] == net.id
    changed["controls"] = [control | {"image": control["image"].replace(sample.id, again.id)}]
    assert again.request == sample.request | changed
    for name in ("image", "mask"):
        assert (
            filled.resolve(again.request[name]).read_bytes()
            == filled.resolve(sample.request[name]).read_bytes()
        )


def test_a_second_pass_comes_back(filled: Workspace, open_page: Open):
    hires = {"scale": 1.05, "strength": 0.7, "upscaler": "latent", "steps": 3}
    base = filled.catalog.get(Base, "pocket").id
    sample = submit(filled, SampleRequest(base=base, hires=hires, width=64, height=64))
    at = open_page(filled, "sample", sample=f"{sample.id}/0")
    press(at)
    assert newest(filled).id != sample.id
    assert newest(filled).request["hires"] == hires
    at.toggle(key="s-hires").set_value(False).run()
    press(at)
    assert newest(filled).request["hires"] is None


@pytest.mark.parametrize(
    "path", ["samples/gone/image.png", "samples/../catalog.db", "/etc/hostname", "studio.toml"]
)
def test_pictures_that_are_not_here_are_said_to_be_missing(
    filled: Workspace, open_page: Open, tmp_path: Path, path: str
):
    base = filled.catalog.get(Base, "pocket")
    told = SampleRequest(base=base.id, image=path, mask=path, width=64, height=64, prompt="a ring")
    blank, file = Pixels.new("RGB", (64, 64)), tmp_path / "t.png"
    write_picture(blank, file, told, base_name=base.name, base_hash=base.weight_hash, adapters=[])
    at = open_page(filled, "sample")
    drop(at, "s-like", file.read_bytes(), "t.png")
    assert at.text_area(key="s-prompt").value == "a ring"
    assert "Its picture to start from is not here" in texts(at)
    assert "Its mask is not here" in texts(at)
    assert "samples" not in errors(at)


def test_a_picture_made_here_is_a_start(filled: Workspace, open_page: Open):
    sample = next(one for one in filled.catalog.list(Sample) if one.files)
    at = open_page(filled, "sample", start=f"{sample.id}/1")
    at.text_area(key="s-prompt").set_value("something else").run()
    assert "A picture made here" in texts(at)
    press(at)
    request = newest(filled).request
    assert request["prompt"] == "something else"
    assert filled.resolve(request["image"]).read_bytes() == filled.resolve(sample.files[1]).read_bytes()


def test_without_a_network_one_line_says_what_to_add(filled: Workspace, open_page: Open):
    at = open_page(filled, "sample")
    assert "There is no network for Stable Diffusion 1.5 here yet" in texts(at)
    assert not any(one.label == "A picture that steers" for one in at.button)


def test_pictures_that_steer(filled: Workspace, open_page: Open):
    edges, union = network(filled, "edges", "canny"), network(filled, "depths", "depth")
    other = network(filled, "other depths", "depth")
    at = open_page(filled, "sample")
    press(at, "A picture that steers")
    press(at, "Another picture that steers")
    first, second = (one for one in at.selectbox if one.label.startswith("What is taken"))
    assert first.options == ["Edges (canny)", "Depth (depth)", "A finished map (none)"]
    press(at)
    assert "control canny: has no picture" in errors(at)
    second.set_value("depth").run()
    serials = [(one.key or "").rpartition("-")[2] for one in (first, second)]
    net = next(one for one in at.selectbox if one.label == "Network (ControlNet)")
    assert net.value == union.id
    net.set_value(other.id).run()
    for serial in serials:
        drop(at, f"s-control-{serial}-file", png())
    at.slider(key=f"c-weight-{serials[0]}").set_value(0.6)
    at.slider(key=f"c-way-{serials[0]}").set_value((0.1, 0.6)).run()
    press(at)
    one, two = newest(filled).request["controls"]
    assert (one["kind"], one["model"], one["weight"], one["start"], one["end"]) == (
        "canny",
        edges.id,
        0.6,
        0.1,
        0.6,
    )
    assert (two["kind"], two["model"], two["preprocess"]) == ("depth", other.id, True)
    press(at, "Another picture that steers")
    assert not any(one.label == "Another picture that steers" for one in at.button)
    at.button(key=f"c-drop-{serials[0]}").click().run()
    assert len([one for one in at.selectbox if one.label.startswith("What is taken")]) == 2


def test_what_the_brush_says_counts_for_its_picture_alone():
    picture = take("a.png", png())
    assert (picture.width, picture.height) == (48, 32)
    assert picture.shown.startswith("data:image/png;base64,")
    assert said_of(None, picture) is None
    assert said_of({"id": "another", "mask": "x"}, picture) is None
    assert said_of({"id": picture.mark, "mask": ""}, picture) == ""


def test_large_pictures_are_shown_small(tmp_path: Path):
    picture = take("a.png", png((2100, 700)))
    assert (picture.width, picture.height) == (2100, 700)
    with Pixels.open(io.BytesIO(base64.b64decode(picture.shown.partition(",")[2]))) as shown:
        assert shown.size == (1024, 341)


def test_names_of_uploads_cannot_leave_the_folder(tmp_path: Path):
    upload = Given("../../x/ä\n'\".png", data=b"123")
    path = Path(written({"image": upload}, tmp_path)["image"])
    assert path.parent == tmp_path / "image"
    assert path.read_bytes() == b"123"
