"""Control pictures on their way: taken in, drawn with, kept beside the pictures, said on the command line."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from registry.errors import BadInput, NotFound
from registry.records import Base, Sample
from studio.bases import add_base, base_path
from studio.commands.controls import choices
from studio.sampling.canvas import fit
from studio.sampling.control import edges
from studio.sampling.control.acting import share
from studio.sampling.engine import Engine
from studio.sampling.request_control import ControlChoice
from studio.sampling.submit import submit
from studio.sampling.task import SampleTask
from studio.workspace import Workspace
from tests.support import controls
from tests.support.sampling import request

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    root = tmp_path_factory.mktemp("controlled")
    workspace = Workspace.open(root / "home")
    folder = base_path(workspace, workspace.catalog.get(Base, "pocket"))
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    controls.controlnet(unet).save_pretrained(root / "canny-net")
    add_base(workspace, "edges", str(root / "canny-net"), family="sd15")
    return workspace


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(device="cpu")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture of another shape than what is drawn."""
    file = tmp_path / "photo.png"
    picture = Image.new("RGB", (96, 64), (20, 40, 200))
    picture.paste((250, 240, 10), (30, 10, 70, 50))
    picture.save(file)
    return file


def choice(file: Path, **values: Any) -> ControlChoice:
    return ControlChoice(**{"kind": "canny", "image": str(file), **values})


def asked(ws: Workspace, *chosen: ControlChoice, **changes: Any) -> SampleTask:
    sample = submit(ws, request(ws, controls=chosen, **changes))
    return SampleTask.read(ws.home / "samples" / sample.id).resolved(ws.resolve)


def drawn(engine: Engine, task: SampleTask) -> tuple[np.ndarray, dict[int, Image.Image]]:
    pictures: list[Image.Image] = []
    maps: dict[int, Image.Image] = {}
    engine.draw(task, keep=lambda _, picture, __: pictures.append(picture), keep_map=maps.__setitem__)
    return np.asarray(pictures[0]).astype(int), maps


def test_the_picture_is_kept_and_the_network_named(ws: Workspace, photo: Path):
    task = asked(ws, choice(photo, weight=0.7))
    photo.unlink()
    used = task.request.controls[0]
    assert (used.model, used.weight) == (ws.catalog.get(Base, "edges").id, 0.7)
    assert used.image == f"samples/{task.id}/control-source-0.png"
    assert Image.open(task.file(used.image)).size == (96, 64)
    assert (task.controls[0].name, task.controls[0].map_kind, task.controls[0].mode) == (
        "edges",
        "canny",
        None,
    )
    row = ws.catalog.get(Sample, task.id)
    assert row.request["controls"][0]["image"] == used.image


def test_what_is_wrong_is_said_before_anything_is_written(ws: Workspace, photo: Path, tmp_path: Path):
    before = sorted((ws.home / "samples").glob("*"))
    text = tmp_path / "text.png"
    text.write_text("no picture")
    with pytest.raises(BadInput, match=r"^text\.png"):
        asked(ws, choice(photo), choice(text))
    with pytest.raises((BadInput, NotFound), match=r"nowhere\.png"):
        asked(ws, choice(tmp_path / "nowhere.png"))
    with pytest.raises(BadInput, match=r"^control depth: has no network"):
        asked(ws, choice(photo, kind="depth"))
    with pytest.raises(BadInput, match=r"^control inpaint: needs a mask"):
        asked(ws, choice(photo, kind="inpaint", model="edges"))
    assert sorted((ws.home / "samples").glob("*")) == before


def test_it_steers_as_long_and_as_strongly_as_asked(ws: Workspace, engine: Engine, photo: Path):
    plain, none = drawn(engine, asked(ws))
    full, maps = drawn(engine, asked(ws, choice(photo)))
    assert not none
    assert np.abs(full - plain).max() > 5
    np.testing.assert_array_equal(drawn(engine, asked(ws, choice(photo, weight=0)))[0], plain)
    half, _ = drawn(engine, asked(ws, choice(photo, end=0.5)))
    assert np.abs(half - plain).max() > 0
    assert np.abs(half - full).max() > 0
    with Image.open(photo) as picture:
        wanted = edges.canny(fit(picture.convert("RGB"), (32, 32)))
    assert np.array_equal(np.asarray(maps[0]), np.asarray(wanted))


def test_the_request_makes_the_same_picture_again(ws: Workspace, engine: Engine, photo: Path):
    task = asked(ws, choice(photo), choice(photo, kind="blur", model="edges", weight=0.3))
    first, maps = drawn(engine, task)
    photo.unlink()
    again = submit(ws, type(task.request).model_validate(ws.catalog.get(Sample, task.id).request))
    second = SampleTask.read(ws.home / "samples" / again.id).resolved(ws.resolve)
    shutil.rmtree(ws.home / "samples" / task.id)
    np.testing.assert_array_equal(drawn(engine, second)[0], first)
    assert sorted(maps) == [0, 1]


def test_a_finished_map_is_taken_as_it_is(ws: Workspace, engine: Engine, photo: Path):
    _, maps = drawn(engine, asked(ws, choice(photo, preprocess=False)))
    with Image.open(photo) as picture:
        assert np.array_equal(np.asarray(maps[0]), np.asarray(fit(picture.convert("RGB"), (32, 32))))


def test_it_goes_with_other_modes(ws: Workspace, engine: Engine, photo: Path, tmp_path: Path):
    mask = tmp_path / "mask.png"
    white = Image.new("L", (96, 64))
    white.paste(255, (40, 16, 72, 48))
    white.save(mask)
    inside = {"image": str(photo), "mask": str(mask), "only_masked": True, "mask_padding": 0, "steps": 4}
    with_net, maps = drawn(engine, asked(ws, choice(photo, kind="none", model="edges"), **inside))
    without, _ = drawn(engine, asked(ws, **inside))
    assert with_net.shape == without.shape == (64, 96, 3)
    assert np.abs(with_net - without)[20:44, 44:68].max() > 0
    with Image.open(photo) as picture:
        crop = picture.convert("RGB").crop((40, 16, 72, 48))
    assert np.array_equal(np.asarray(maps[0]), np.asarray(crop)), "the map is of the part that is drawn"
    twice = asked(ws, choice(photo), hires={"scale": 2, "steps": 2, "strength": 0.5})
    larger, maps = drawn(engine, twice)
    assert larger.shape == (64, 64, 3)
    assert maps[0].size == (32, 32), "the first pass's is kept"
    holed = asked(ws, choice(photo, kind="inpaint", model="edges"), image=str(photo), mask=str(mask))
    drawn(engine, holed)


def test_the_part_of_a_picture_under_a_part_of_the_drawing():
    picture = controls.map_picture((64, 64))
    assert share(picture, (64, 64), (0, 0, 1, 1)) is picture
    quarter = share(picture, (32, 32), (0.5, 0.0, 1.0, 0.5))
    assert np.array_equal(np.asarray(quarter), np.asarray(picture)[:32, 32:])


def test_the_command_line(ws: Workspace, photo: Path):
    (fields,) = choices(ws, [f"canny:{photo}"], [])
    assert fields == {
        "kind": "canny",
        "image": str(photo),
        "model": "",
        "preprocess": True,
        "preprocessor": "",
        "guess": False,
    }
    (fields,) = choices(
        ws, [f"depth:{photo}:0.8:0.1:0.5"], ["edges"], maps=True, preprocessor="/models/depth", guess=True
    )
    assert fields == {
        "kind": "depth", "image": str(photo), "weight": 0.8, "start": 0.1, "end": 0.5, "preprocess": False,
        "model": ws.catalog.get(Base, "edges").id, "preprocessor": "/models/depth", "guess": True,
    }  # fmt: skip
    (fields,) = choices(ws, ["canny:/a:b.png:1"], [])
    assert (fields["image"], fields["weight"]) == ("/a:b.png", 1.0)
    for text in ("canny", "canny:", f"canny:{photo}:1:0"):
        with pytest.raises(BadInput, match=r"is not KIND:FILE\[:WEIGHT\[:START:END\]\]"):
            choices(ws, [text], [])
    with pytest.raises(BadInput, match="is no kind of control"):
        choices(ws, [f"cany:{photo}"], [])
    with pytest.raises(BadInput, match="--control-model: is given 1 times, --control 0 times"):
        choices(ws, [], ["edges"])
    with pytest.raises(NotFound):
        choices(ws, [f"canny:{photo}"], ["nothing"])
