"""ControlNet through `/sdapi/v1`, as clients of A1111 send it: what becomes of a unit, what is refused."""

from collections.abc import Iterator
from typing import Any

import pytest
import webuiapi
from PIL import Image as Pillow
from starlette.testclient import TestClient

from registry.records import Base, Sample
from studio.api import sdapi
from studio.app import state
from studio.app.token import Token
from studio.sampling.submit import cancel
from studio.workspace import Workspace
from tests.app.test_api import client_of, png

NET = "edges"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """With a network for Canny, whose files are never read here."""
    root = tmp_path_factory.mktemp("steered")
    (root / "net").mkdir()
    workspace = Workspace.open(root / "home")
    workspace.catalog.add(
        Base(name=NET, family="sd15", variant="canny", kind="folder", location=str(root / "net"),
             part="controlnet", weight_hash="ab" * 32)
    )  # fmt: skip
    return workspace


@pytest.fixture
def steered(place: Workspace) -> Iterator[tuple[TestClient, Workspace]]:
    sdapi._options.clear()
    sdapi._options["sd_model_checkpoint"] = "pocket"
    yield client_of(place), place
    sdapi._options.clear()
    state.use(None)


def sent(
    client: TestClient, ws: Workspace, monkeypatch: pytest.MonkeyPatch, unit: dict[str, Any], **more: Any
) -> dict[str, Any]:
    """The first control of the request that came of a unit; it is called off at once."""
    kept: list[Sample] = []

    def put(workspace: Workspace, request: Any) -> Sample:
        from studio.sampling.submit import submit

        kept.append(submit(workspace, request))
        cancel(workspace, kept[0])
        return kept[0]

    monkeypatch.setattr(sdapi, "put", put)
    body = {"prompt": "x", "width": 64, "height": 64, "alwayson_scripts": {"controlnet": {"args": [unit]}}}
    path = "img2img" if "init_images" in more else "txt2img"
    answer = client.post(f"/sdapi/v1/{path}", json=body | more)
    assert kept, answer.text
    (control,) = ws.catalog.get(Sample, kept[0].id).request["controls"]
    return control


def test_a_unit_of_a_published_client_is_a_control_of_ours(steered, monkeypatch: pytest.MonkeyPatch):
    """webuiapi sends all fields, its own defaults where nobody chose."""
    client, ws = steered
    (title,) = client.get("/controlnet/model_list").json()["model_list"]
    assert title == "edges [abababab]"
    picture = Pillow.new("RGB", (64, 64), "blue")
    unit = webuiapi.ControlNetUnit(
        image=picture, module="canny", model=title, weight=0.8, guidance_start=0.1, guidance_end=0.9,
        control_mode=2, pixel_perfect=True,
    )  # fmt: skip
    control = sent(client, ws, monkeypatch, unit.to_dict())
    assert {name: control[name] for name in ("kind", "weight", "start", "end", "preprocess", "guess")} == {
        "kind": "canny", "weight": 0.8, "start": 0.1, "end": 0.9, "preprocess": True, "guess": True,
    }  # fmt: skip
    assert control["model"] == ws.catalog.get(Base, NET).id
    with Pillow.open(ws.resolve(control["image"])) as kept:
        assert kept.convert("RGB").getpixel((5, 5)) == (0, 0, 255)


def test_old_names_a_finished_map_and_the_picture_of_img2img(steered, monkeypatch: pytest.MonkeyPatch):
    client, ws = steered
    old = {"input_image": png((32, 64)), "module": "none", "model": NET, "guidance": 0.5, "resize_mode": 0,
           "lowvram": True, "processor_res": 300, "guessmode": True}  # fmt: skip
    control = sent(client, ws, monkeypatch, old)
    assert (control["kind"], control["preprocess"], control["end"]) == ("canny", False, 0.5)
    assert control["guess"] is True
    with Pillow.open(ws.resolve(control["image"])) as kept:
        assert kept.size == (64, 64), "just resized"
    control = sent(client, ws, monkeypatch, {"module": "canny"}, init_images=[png((64, 64), "green")])
    with Pillow.open(ws.resolve(control["image"])) as kept:
        assert kept.convert("RGB").getpixel((5, 5)) == (0, 128, 0)


@pytest.mark.parametrize(
    ("unit", "says"),
    [
        (
            {"module": "softedge_hed"},
            "controlnet.0.module 'softedge_hed': is unknown. see /controlnet",
        ),
        ({"model": "nope"}, "controlnet.0.model 'nope': is not in the catalog"),
        ({"image": None}, "controlnet.0.image: is missing"),
        ({"image": "AAAA"}, "controlnet.0.image: cannot be read as a picture"),
        ({"image": {"image": png(), "mask": png()}}, "controlnet.0.mask: is not built in here"),
        ({"mask": png()}, "controlnet.0.mask: is not built in here"),
        (
            {"threshold_a": 30, "threshold_b": 90},
            "threshold_b '30, 90': are not built in here. send 100",
        ),
        (
            {"processor_res": 300},
            "controlnet.0.processor_res '300': is not built in here. send",
        ),
        ({"control_mode": "My prompt is more important"}, "controlnet.0.control_mode 'My prompt"),
        ({"control_mode": 7}, "controlnet.0.control_mode '7': is unknown"),
        (
            {"image": png((64, 32)), "resize_mode": "Resize and Fill"},
            "controlnet.0.resize_mode: is not built",
        ),
        ({"weight": "much"}, "controlnet.0.weight: is no number"),
        ({"guidance_start": 0.9, "guidance_end": 0.2}, "start must be before end"),
        ({"weight": 9}, "weight: "),
        ({"ipadapter_input": ["x"]}, "controlnet.0.ipadapter_input: is not built in here"),
        ({"advanced_weighting": [1.0]}, "controlnet.0.advanced_weighting: is not built in here"),
        ({"inpaint_crop_input_image": False}, "inpaint_crop_input_image: cannot be turned off"),
    ],
)
def test_what_a_unit_cannot_have_here_is_said(steered, unit: dict[str, Any], says: str):
    client, _ = steered
    unit = {"image": png(), "module": "canny", "model": NET} | unit
    body = {"prompt": "x", "width": 64, "height": 64, "alwayson_scripts": {"ControlNet": {"args": [unit]}}}
    answer = client.post("/sdapi/v1/txt2img", json=body)
    assert 400 <= answer.status_code < 500, answer.text
    assert says in answer.json()["detail"]


def test_lists_for_clients_are_there_and_ask_for_the_token(steered):
    client, ws = steered
    modules = client.get("/controlnet/module_list").json()
    assert {"none", "canny", "lineart_standard", "openpose"} <= set(modules["module_list"])
    assert set(modules["module_list"]) == modules["module_detail"].keys()
    assert client.get("/controlnet/version").json() == {"version": 2}
    assert "controlnet" in client.get("/sdapi/v1/scripts").json()["txt2img"]
    closed = client_of(ws, token=Token("sixteen-characters-long", needed=True))
    assert closed.get("/controlnet/model_list").status_code == 401
