"""The HTTP interface without a sampler: what it lists, takes, refuses, and who may use it."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image as Pillow
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.testclient import TestClient

from registry.errors import StudioError
from registry.records import Adapter, Base, Job, JobKind, JobState, Run, Sample
from studio.api import sdapi
from studio.api.application import mounts
from studio.app import state
from studio.app.guard import Guard
from studio.app.password import Door, hash_password
from studio.app.token import Token
from studio.sampling.defaults import default_guidance
from studio.sampling.metadata.writing import write_picture
from studio.sampling.request import SampleRequest
from studio.sampling.submit import job_of
from studio.workspace import Workspace

JSON = {"Content-Type": "application/json"}
TOKEN = "sixteen-characters-long"


def png(size: tuple[int, int] = (64, 64), colour: str = "red") -> str:
    """A picture as base64."""
    made = io.BytesIO()
    Pillow.new("RGB", size, colour).save(made, format="PNG")
    return base64.b64encode(made.getvalue()).decode()


def client_of(ws: Workspace, **guard: Any) -> TestClient:
    """The interface behind the guard, serving `ws`; no worker runs."""
    state.use(ws)
    middleware = [Middleware(Guard, **guard)]  # pyright: ignore[reportArgumentType]
    app = Starlette(routes=mounts(), middleware=middleware)
    return TestClient(app, base_url="http://127.0.0.1:8501", raise_server_exceptions=False)


@pytest.fixture
def client(filled: Workspace) -> Iterator[TestClient]:
    sdapi._options.clear()
    yield client_of(filled)
    state.use(None)


def request_of(ws: Workspace, reply: dict[str, Any]) -> dict[str, Any]:
    """What was put into the queue."""
    return ws.catalog.get(Sample, reply["id"]).request


# --- /api/v1


def test_it_lists_what_the_catalog_holds(client: TestClient, filled: Workspace):
    names = {base["name"] for base in client.get("/api/v1/bases").json()}
    assert {"pocket", "pocket-xl", "pocket-sd35", "pocket-flux"} <= names
    assert client.get("/api/v1/bases/pocket").json()["family"] == "sd15"
    page = client.get("/api/v1/adapters", params={"limit": 2, "sort": "name"}).json()
    assert page["total"] == filled.catalog.search_adapters().total
    rest = client.get(
        "/api/v1/adapters", params={"limit": 1000, "sort": "name", "after": page["next"]}
    ).json()
    found = [adapter["id"] for adapter in (*page["adapters"], *rest["adapters"])]
    assert len(set(found)) == page["total"]
    one = filled.catalog.get(Adapter, found[0])
    assert client.get(f"/api/v1/adapters/{one.id}").json()["tensor_sha256"] == one.tensor_sha256
    runs = client.get("/api/v1/runs").json()
    assert {run["id"] for run in runs} == {run.id for run in filled.catalog.list(Run)}
    assert client.get(f"/api/v1/runs/{runs[0]['id']}").json() == runs[0]


def test_it_describes_itself(client: TestClient):
    described = client.get("/api/v1/openapi.json").json()
    assert "/generate" in described["paths"]
    steps = described["components"]["schemas"]["Generate"]["properties"]["steps"]
    assert steps["maximum"] == 500
    assert steps["description"].startswith("How many steps")
    assert "/txt2img" in client.get("/sdapi/v1/openapi.json").json()["paths"]


def test_what_is_left_out_is_the_bases_own(client: TestClient, filled: Workspace):
    answer = client.post("/api/v1/generate", json={"base": "pocket", "prompt": "a red circle", "seed": 7})
    assert answer.status_code == 202
    request = request_of(filled, answer.json())
    assert (request["width"], request["height"]) == (64, 64)
    pocket = filled.catalog.get(Base, "pocket")
    assert (request["base"], request["cfg"]) == (pocket.id, default_guidance(pocket))
    assert (answer.json()["state"], answer.json()["seeds"]) == ("queued", [7])


def test_none_named_is_the_base_used_last(client: TestClient, filled: Workspace):
    client.post("/api/v1/generate", json={"base": "pocket-xl", "prompt": "x"})
    answer = client.post("/api/v1/generate", json={"prompt": "x"})
    assert request_of(filled, answer.json())["base"] == filled.catalog.get(Base, "pocket-xl").id


def test_pictures_come_as_base64_and_give_the_shape(client: TestClient, filled: Workspace):
    body = {
        "base": "pocket",
        "prompt": "x",
        "image": f"data:image/png;base64,{png((128, 64))}",
        "mask": png((128, 64), "white"),
    }
    answer = client.post("/api/v1/generate", json=body)
    assert answer.status_code == 202, answer.text
    request = request_of(filled, answer.json())
    assert (request["width"], request["height"]) == (88, 40)
    folder = filled.resolve(request["image"]).parent
    assert {"image.png", "mask.png", "request.json"} <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ({"base": "nope"}, 404, "nope"),
        ({"steps": 0}, 422, "steps: input should be greater than or equal to 1. see openapi.json."),
        ({"colour": "red"}, 422, "colour: extra inputs are not permitted."),
        ({"width": 64}, 400, "size: has one side only."),
        ({"image": "/etc/passwd"}, 400, "image: is not base64."),
        ({"image": "data:image/png;base64,AAAA"}, 400, "image: "),
        ({"adapters": [{"id": "nope"}]}, 404, "nope"),
        ({"scheduler": "Eular"}, 400, "scheduler 'Eular': is unknown."),
        ({"prompt": "<lora:nope:1>"}, 404, "nope"),
        ({"width": 64, "height": 64, "mask": png()}, 400, "mask"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(
    client: TestClient, filled: Workspace, body: dict[str, Any], code: int, says: str
):
    before = filled.catalog.count(Sample)
    answer = client.post("/api/v1/generate", json={"base": "pocket", "prompt": "x"} | body)
    assert answer.status_code == code, answer.text
    assert says in answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]
    assert filled.catalog.count(Sample) == before


def test_a_request_is_followed_and_called_off(client: TestClient):
    made = client.post("/api/v1/generate", json={"base": "pocket", "prompt": "x", "count": 2}).json()
    at = client.get(f"/api/v1/progress/{made['id']}").json()
    assert (at["state"], at["pictures"], at["files"], at["preview"]) == ("queued", 2, [], "")
    assert client.post(f"/api/v1/cancel/{made['id']}").json()["state"] == "cancelled"
    assert client.get("/api/v1/progress/nothing").status_code == 404
    assert client.get(f"/api/v1/samples/{made['id']}/pictures/0").status_code == 404
    assert client.get(f"/api/v1/samples/{made['id']}/preview").status_code == 404


def test_pictures_are_handed_out_as_they_were_written(client: TestClient, filled: Workspace):
    sample = next(sample for sample in filled.catalog.list(Sample) if sample.files)
    got = client.get(f"/api/v1/samples/{sample.id}/pictures/0")
    assert got.content == filled.resolve(sample.files[0]).read_bytes()
    assert got.headers["content-type"] == "image/png"


def test_a_body_without_end_is_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("studio.api.application.MAX_BODY", 1000)
    answer = client.post("/api/v1/generate", json={"prompt": "x" * 2000})
    assert answer.status_code == 413
    assert "is larger than" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("address", "send", "code", "says"),
    [
        ("generate", {"content": b"{", "headers": JSON}, 422, "request: is not JSON"),
        ("generate", {"content": b"[" * 100_000, "headers": JSON}, 4, ""),
        ("generate", {"content": b'{"prompt": "\xff"}', "headers": JSON}, 4, ""),
        ("generate", {"content": b"{}"}, 422, "Content-Type"),
        ("generate", {"json": {"prompt": [[]] * 600_000}}, 413, "has more than 500,000 values"),
        ("nowhere", {"json": {}}, 404, "Not Found"),
        ("bases", {"json": {}}, 405, "Method Not Allowed"),
    ],
)
def test_every_fault_has_one_shape(
    client: TestClient, address: str, send: dict[str, Any], code: int, says: str
):
    answer = client.post(f"/api/v1/{address}", **send)
    assert str(answer.status_code).startswith(str(code)), answer.text
    assert answer.json().keys() == {"error", "detail"}
    assert says in answer.json()["detail"]


@pytest.mark.parametrize("address", ["/sdapi/v1/png-info", "/api/v1/generate"])
def test_a_bomb_is_refused_by_its_header(client: TestClient, address: str):
    made = io.BytesIO()
    Pillow.new("1", (20_000, 20_000)).save(made, format="PNG")
    text = base64.b64encode(made.getvalue()).decode()
    answer = client.post(address, json={"prompt": "x", "image": text})
    assert answer.status_code == 400, answer.text
    init = client.post("/sdapi/v1/img2img", json={"prompt": "x", "init_images": [text]})
    assert init.status_code == 400, init.text


def test_what_nobody_can_draw_is_not_in_the_queue(
    client: TestClient, filled: Workspace, monkeypatch: pytest.MonkeyPatch
):
    def fail() -> None:
        raise StudioError("worker", "did not start", "see the log")

    monkeypatch.setattr(state, "wake_worker", fail)
    answer = client.post("/api/v1/generate", json={"base": "pocket", "prompt": "x"})
    assert (answer.status_code, answer.json()["detail"]) == (500, "worker: did not start. see the log.")
    newest = filled.catalog.list(Sample, limit=1)[0]
    assert job_of(filled, newest).state is JobState.CANCELLED


# --- who may use it


@pytest.mark.parametrize(
    "headers", [{"host": "[::1"}, {"host": "["}, {"host": "evil@127.0.0.1"}, {"origin": "http://["}]
)
def test_broken_addresses_are_refused(client: TestClient, headers: dict[str, str]):
    assert client.get("/api/v1/bases", headers=headers).status_code in {400, 403}


def test_on_this_machine_it_is_open(filled: Workspace):
    assert client_of(filled).get("/api/v1/bases").status_code == 200


@pytest.mark.parametrize("path", ["/api/v1/bases", "/sdapi/v1/sd-models"])
def test_behind_a_password_it_is_off_without_a_token(filled: Workspace, path: str):
    door = Door(hash_password("correct horse"), b"key")
    client = client_of(filled, door=door)
    client.cookies.set("lora_studio", door.session())
    answer = client.get(path)
    assert answer.status_code == 403
    assert "STUDIO_API_TOKEN" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/api/v1/bases", "/sdapi/v1/sd-models"])
def test_a_token_is_asked_for(filled: Workspace, path: str):
    client = client_of(filled, token=Token(TOKEN, needed=False))
    assert client.get(path).status_code == 401
    basic = {"Authorization": "Basic " + base64.b64encode(f"me:{TOKEN}".encode()).decode()}
    for headers in ({"Authorization": f"Bearer {TOKEN}"}, basic):
        assert client.get(path, headers=headers).status_code == 200
    for wrong in (f"Bearer {TOKEN}x", "Bearer ", "Basic ?", f"Digest {TOKEN}", "Basic " + "é"):
        assert client.get(path, headers={"Authorization": wrong.encode()}).status_code == 401


def test_another_sites_page_may_not_use_it(client: TestClient):
    answer = client.post("/sdapi/v1/interrupt", headers={"origin": "http://evil.example"})
    assert answer.status_code == 403


# --- /sdapi/v1


def test_png_info_reads_our_pictures(client: TestClient, filled: Workspace, tmp_path: Any):
    request = SampleRequest(
        base=filled.catalog.get(Base, "pocket").id, prompt="a fox", negative="rain", seed=5
    )
    write_picture(Pillow.new("RGB", (8, 8)), tmp_path / "p.png", request, base_name="pocket")
    text = base64.b64encode((tmp_path / "p.png").read_bytes()).decode()
    said = client.post("/sdapi/v1/png-info", json={"image": f"data:image/png;base64,{text}"}).json()
    assert said["info"].startswith("a fox\nNegative prompt: rain\nSteps: 25")
    assert said["parameters"]["Seed"] == "5"
    assert "lora_studio" in said["items"]
    assert client.post("/sdapi/v1/png-info", json={"image": png()}).json()["info"] == ""


def test_lists_have_what_clients_read(client: TestClient, filled: Workspace):
    models = client.get("/sdapi/v1/sd-models").json()
    assert {"title", "model_name", "hash", "sha256", "filename"} <= models[0].keys()
    loras = client.get("/sdapi/v1/loras").json()
    assert len(loras) == filled.catalog.search_adapters().total
    assert {"name", "alias", "path", "metadata"} == loras[0].keys()
    assert "Euler a" in {sampler["name"] for sampler in client.get("/sdapi/v1/samplers").json()}
    assert {"karras", "automatic"} <= {one["name"] for one in client.get("/sdapi/v1/schedulers").json()}


def test_a_checkpoint_is_chosen(client: TestClient):
    titles = [model["title"] for model in client.get("/sdapi/v1/sd-models").json()]
    title = next(title for title in titles if title.startswith("pocket-xl"))
    chosen = {"sd_model_checkpoint": title, "CLIP_stop_at_last_layers": 2}
    assert client.post("/sdapi/v1/options", json=chosen).status_code == 200
    options = client.get("/sdapi/v1/options").json()
    assert (options["sd_model_checkpoint"], options["CLIP_stop_at_last_layers"]) == (title, 2)
    wrong = client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "nope"})
    assert wrong.status_code == 404


def test_progress_is_that_of_the_first_in_turn(client: TestClient, filled: Workspace):
    for job in filled.catalog.list(Job, kind=JobKind.SAMPLE, state=JobState.QUEUED):
        filled.catalog.cancel_job(job.id)
    idle = client.get("/sdapi/v1/progress").json()
    made = client.post("/api/v1/generate", json={"base": "pocket", "prompt": "x"}).json()
    busy = client.get("/sdapi/v1/progress").json()
    assert busy["state"]["job_count"] == idle["state"]["job_count"] + 1
    client.post("/sdapi/v1/interrupt")
    sample = filled.catalog.get(Sample, made["id"])
    assert job_of(filled, sample).state is JobState.CANCELLED


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("txt2img", {"restore_faces": True}, "restore_faces: is not built in here"),
        ("txt2img", {"styles": ["x"]}, "styles: is not built in here"),
        ("txt2img", {"alwayson_scripts": {"ADetailer": {"args": [{"model": "x"}]}}}, "script 'ADetailer'"),
        ("txt2img", {"sampler_name": "Eular"}, "sampler 'Eular': is unknown"),
        ("txt2img", {"width": 4}, "width: "),
        ("txt2img", {"batch_size": 9, "n_iter": 9}, "count: "),
        ("txt2img", {"override_settings": {"sd_model_checkpoint": "nope"}}, "nope"),
        ("img2img", {}, "init_images: is empty"),
        ("img2img", {"init_images": ["!"]}, "init_images.0: is not base64"),
        ("img2img", {"init_images": ["AAAA"]}, "init_images.0: cannot be read as a picture"),
        ("img2img", {"init_images": [png()], "resize_mode": 2}, "resize_mode: is not built in here"),
        ("png-info", {"image": "AAAA"}, "image: is not a sound PNG"),
        (
            "txt2img",
            {"sampler_name": "Euler a", "scheduler": "karras"},
            "does not go with Euler a",
        ),
        ("txt2img", {"scheduler": "karras"}, "is given without a sampler"),
        ("txt2img", {"enable_hr": True, "hr_upscaler": "R-ESRGAN 4x+"}, "hr_upscaler 'R-ESRGAN 4x+'"),
        ("txt2img", {"override_settings": {"CLIP_stop_at_last_layers": "abc"}}, "CLIP_stop_at_last_layers"),
        ("txt2img", {"override_settings": {"sd_vae": "x.pt"}}, "override_settings.sd_vae"),
        ("txt2img", {"alwayson_scripts": [1]}, "alwayson_scripts: is no object"),
        ("txt2img", {"seed_resize_from_w": 64}, "seed_resize_from_w"),
        ("options", {"CLIP_stop_at_last_layers": 99}, "CLIP_stop_at_last_layers"),
        ("options", {"CLIP_stop_at_last_layers": "abc"}, "CLIP_stop_at_last_layers"),
    ],
)
def test_what_has_no_counterpart_is_said(client: TestClient, path: str, body: dict[str, Any], says: str):
    answer = client.post(f"/sdapi/v1/{path}", json={"prompt": "x"} | body)
    assert 400 <= answer.status_code < 500, answer.text
    assert says in answer.json()["detail"]
