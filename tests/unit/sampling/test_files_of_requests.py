"""Pictures that a request brings: kept with the sample, refused in one line, made again later."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from registry.errors import BadInput
from registry.records import Base, Sample
from studio.cli import run
from studio.commands import modes
from studio.sampling.checks import check_modes
from studio.sampling.engine import Engine
from studio.sampling.files import picture_size
from studio.sampling.metadata.writing import picture_request
from studio.sampling.request import SampleRequest
from studio.sampling.submit import submit
from studio.sampling.task import SampleTask
from studio.workspace import Workspace
from tests.support.modes import mask, picture, saved
from tests.support.sampling import request

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace.open(tmp_path_factory.mktemp("files") / "home")


def folders(ws: Workspace) -> set[Path]:
    place = ws.home / "samples"
    return set(place.iterdir()) if place.exists() else set()


def draw(ws: Workspace, sample: Sample) -> np.ndarray:
    task = SampleTask.read(ws.sample_dir(sample.id)).resolved(ws.resolve)
    pictures: list[Any] = []
    Engine(device="cpu").draw(task, keep=lambda _, one, __: pictures.append(one))
    return np.asarray(pictures[0])


def test_files_are_kept_with_the_sample_and_make_it_again(ws: Workspace, tmp_path: Path):
    files = {"image": saved(picture(), tmp_path / "a.png"), "mask": saved(mask(), tmp_path / "m.png")}
    first = submit(ws, request(ws, strength=0.8, steps=3, **files))
    assert first.request["image"] == f"samples/{first.id}/image.png"
    assert first.request["mask"] == f"samples/{first.id}/mask.png"
    for file in files.values():
        Path(file).unlink()
    again = submit(ws, SampleRequest.model_validate(first.request))
    assert again.request["image"] == f"samples/{again.id}/image.png"
    assert np.array_equal(draw(ws, first), draw(ws, again))


def test_a_photo_on_its_side_is_turned(ws: Workspace, tmp_path: Path):
    image = picture((32, 48))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "side.jpg", exif=exif, quality=95)
    sample = submit(ws, request(ws, image=str(tmp_path / "side.jpg"), strength=0.5))
    with Image.open(ws.resolve(str(sample.request["image"]))) as kept:
        assert kept.size == (32, 48)
        assert kept.getexif().get(0x0112, 1) == 1


BOTH = {"image": "good.png", "mask": "good.png"}
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("not a picture", {"image": "text.png"}, "text.png: "),
    ("damaged", {"image": "cut.png"}, "cut.png: "),
    ("missing", {"image": "none.png"}, "none.png: is not a plain file"),
    ("mask of another shape", {"image": "good.png", "mask": "wide.png"}, "wide.png: is 96x32 pixels"),
    ("mask alone", {"mask": "good.png"}, "mask: needs a picture"),
    ("outpaint alone", {"outpaint": (8, 0, 0, 0)}, "outpaint: needs a picture"),
    ("upscale alone", {"upscale": {"scale": 2}}, "upscale: needs a picture"),
    ("only_masked alone", {"image": "good.png", "only_masked": True}, "only_masked: needs a mask"),
    ("no step left", {"image": "good.png", "strength": 0.1}, "strength 0.1: leaves no step of 4"),
    ("no step left above", {"hires": {"strength": 0.1}}, "hires.strength 0.1: leaves no step of 4"),
    ("two at once", BOTH | {"upscale": {}}, "upscale: does not go with mask"),
    ("mask and hires", BOTH | {"hires": {}}, "hires: does not go with a mask"),
    ("tiles", {"image": "good.png", "upscale": {"overlap": 20}}, "upscale.overlap 20: is more than half"),
    ("refiner of another family", {"refiner": "pocket"}, "refiner pocket: is for SDXL, base pocket is"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "fields", "wrong"), BAD, ids=[row[0] for row in BAD])
def test_what_cannot_be_drawn_is_refused_in_one_line_and_leaves_nothing(
    ws: Workspace, tmp_path: Path, name: str, fields: dict[str, Any], wrong: str
):
    saved(picture(), tmp_path / "good.png")
    saved(mask((32, 96)), tmp_path / "wide.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:-200])
    there = {key: str(tmp_path / fields[key]) for key in ("image", "mask") if key in fields}
    before, count = folders(ws), ws.catalog.count(Sample)
    with pytest.raises(BadInput) as refused:
        submit(ws, SampleRequest.model_validate(request(ws).model_dump() | fields | there))
    assert wrong in str(refused.value)
    assert "\n" not in str(refused.value)
    assert (folders(ws), ws.catalog.count(Sample)) == (before, count)


def test_a_refiner_is_no_base_and_a_base_no_refiner(ws: Workspace):
    base = Base(id="1", name="xl", family="sdxl", variant="eps", location="x", kind="folder")
    refiner = Base(id="2", name="fine", family="sdxl", variant="eps-refiner", location="x", kind="folder")
    wanted = request(ws)
    check_modes(wanted, base, refiner)
    with pytest.raises(BadInput, match="base fine: is a refiner"):
        check_modes(wanted, refiner)
    with pytest.raises(BadInput, match="refiner xl: is a base, not a refiner"):
        check_modes(wanted, base, base)


def test_one_picture_of_a_variation_keeps_the_seed(ws: Workspace):
    one = picture_request(request(ws, seed=5, subseed=9, subseed_strength=0.2, count=3), 2)
    assert (one.seed, one.subseed, one.count) == (5, 11, 1)
    one = picture_request(request(ws, seed=5, subseed=9, count=3), 2)
    assert (one.seed, one.subseed, one.count) == (7, 9, 1)


@pytest.mark.parametrize(
    ("size", "added", "expected"),
    [((100, 60), (0, 0, 0, 0), (60, 100)), ((100, 60), (0, 4, 0, 0), (60, 104)),
     ((1000, 250), (0, 0, 0, 0), (248, 1000)), ((2000, 500), (0, 0, 0, 0), (256, 1024))],
)  # fmt: skip
def test_the_size_follows_the_picture(tmp_path: Path, size: Any, added: Any, expected: Any):
    saved(picture(size), tmp_path / "a.png")
    assert picture_size(tmp_path / "a.png", 512 * 512, 4, added) == expected


# --- the command line


def test_short_forms_become_fields():
    assert modes.sides("") == (0, 0, 0, 0)
    assert modes.sides("0, 8,128,0") == (0, 8, 128, 0)
    assert modes.hires("1.5:0.4:10:latent") == {
        "scale": "1.5", "strength": "0.4", "steps": "10", "upscaler": "latent",
    }  # fmt: skip
    assert modes.upscale("2:32") == {"scale": "2", "overlap": "32"}
    assert modes.hires("") is None
    assert modes.variation("7:0.2") == {"subseed": "7", "subseed_strength": "0.2"}
    for wrong in (lambda: modes.sides("1,2,3"), lambda: modes.hires("big"), lambda: modes.variation("7")):
        with pytest.raises(BadInput, match="write for example"):
            wrong()


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (["--image", "none.png"], "none.png"),
        (["--image", "good.png", "--strength", "0.01"], "strength 0.01: leaves no step"),
        (["--image", "good.png", "--mask", "none.png"], "none.png: is not a plain file"),
        (["--mask", "good.png"], "mask: needs a picture"),
        (["--outpaint", "1,2"], "is not four numbers"),
        (["--hires", "2:7"], "hires.strength"),
        (["--memory", "none"], "memory 'none'"),
        (["--mask-content", "stars"], "mask_content 'stars'"),
        (["--refiner", "nobody"], "nobody"),
    ],
)
def test_bad_options_are_one_line(ws: Workspace, tmp_path: Path, monkeypatch, capsys, options, wrong):
    monkeypatch.chdir(tmp_path)
    saved(picture(), tmp_path / "good.png")
    saved(mask(), tmp_path / "mask.png")
    code = run(["--home", str(ws.home), "sample", "--prompt", "x", "--out", "out", *options])
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    error = said.err.strip()
    assert error.startswith("error: ")
    assert wrong in error
    assert "\n" not in error


def test_a_picture_is_made_from_a_picture_by_command(tmp_path: Path, capsys):
    image = saved(picture((64, 48)), tmp_path / "good.png")
    code = run([
        "--home", str(tmp_path / "home"), "--json", "sample", "--prompt", "x", "--out", str(tmp_path / "out"),
        "--image", image, "--strength", "0.5", "--steps", "2", "--outpaint", "0,0,16,0",
    ])  # fmt: skip
    said = capsys.readouterr()
    assert code == 0, said.err
    made = json.loads(said.out)
    with Image.open(made["files"][0]) as drawn:
        assert drawn.size == (64, 64)
        kept = np.asarray(drawn.convert("RGB"))[:, :40]
    with Image.open(image) as original:
        assert np.array_equal(kept, np.asarray(original)[:, :40])  # beyond the soft edge
