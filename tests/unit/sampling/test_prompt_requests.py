"""Prompts on their way: choices, adapters, embeddings before the queue; texts of each picture behind it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from registry.errors import BadInput
from registry.records import Base, Sample
from studio.sampling.engine import Engine
from studio.sampling.metadata.reading import read_metadata
from studio.sampling.metadata.writing import picture_request, write_picture
from studio.sampling.prompts.embeddings import read_embedding
from studio.sampling.prompts.ready import find_adapter, ready
from studio.sampling.prompts.request_texts import batches
from studio.sampling.request import AdapterChoice, SampleRequest
from studio.sampling.submit import submit
from studio.sampling.task import SampleTask
from studio.workspace import Workspace
from tests.support.sampling import add_adapter, request, task

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
WIDTH = 96  # of text in the pocket base


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    ws = Workspace.open(tmp_path_factory.mktemp("requests") / "home")
    (ws.home / "wildcards/colour.txt").write_text("red\nblue\ngreen\n")
    (ws.home / "wildcards/style.txt").write_text("<lora:ink:0.5> ink\n<lora:wash:0.5> wash\n")
    return ws


@pytest.fixture(scope="module")
def ink(ws: Workspace):
    return add_adapter(ws, "ink", seed=1)


@pytest.fixture(scope="module")
def wash(ws: Workspace):
    return add_adapter(ws, "Wash of old Ink", seed=2)


def made(ws: Workspace, **changes: Any) -> SampleRequest:
    return ready(ws, request(ws, **changes), "sd15")[0]


def test_a_plain_request_stays_as_it_is(ws: Workspace):
    plain = request(ws, prompt="a (red:1.2) [x|y] AND b", negative="c", count=3)
    assert ready(ws, plain, "sd15") == (plain, {})


def test_each_picture_has_the_prompt_of_its_own_seed(ws: Workspace):
    asked = {"prompt": "a __colour__ {hat|coat}", "negative": "{b|c|d}"}
    four = made(ws, **asked, count=4, seed=2**32 - 2)
    assert (four.template, four.negative_template) == (asked["prompt"], asked["negative"])
    assert four.prompt == four.resolved[0][0]
    seeds = [2**32 - 2, 2**32 - 1, 0, 1]
    alone = [made(ws, **asked, seed=seed) for seed in seeds]
    assert [four.texts(i) for i in range(4)] == [(one.prompt, one.negative) for one in alone]
    assert all(one.resolved == () for one in alone)
    assert len({made(ws, **asked, seed=seed).prompt for seed in range(30)}) == 6
    # Drawn again from what the picture says, nothing is chosen anew.
    third = picture_request(four, 2)
    assert (third.prompt, third.negative, third.seed, third.count) == (*four.texts(2), 0, 1)
    (ws.home / "wildcards/colour.txt").write_text("yellow\n")
    assert ready(ws, third, "sd15")[0] == third
    assert ready(ws, four, "sd15")[0] == four
    (ws.home / "wildcards/colour.txt").write_text("red\nblue\ngreen\n")


def test_a_picture_says_its_template_and_its_prompt(ws: Workspace, tmp_path: Path):
    from PIL import Image

    four = made(ws, prompt="a __colour__ hat", count=4, clip_skip=2)
    write_picture(Image.new("RGB", (8, 8)), tmp_path / "a.png", four, index=3)
    read = read_metadata(tmp_path / "a.png")
    assert read.request == picture_request(four, 3)
    assert read.prompt == four.resolved[3][0]
    assert read.request is not None
    assert read.request.template == "a __colour__ hat"
    assert read.pairs["Clip skip"] == "2"


def test_tags_become_adapters_and_leave_the_text(ws: Workspace, ink: Any, wash: Any):
    found = made(ws, prompt="a <lora:ink:0.5> hat, <lora:Wash-of-old-Ink:0.2:0.7>")
    assert found.prompt == "a hat,"
    assert found.adapters == (
        AdapterChoice(id=ink.id, weight=0.5), AdapterChoice(id=wash.id, weight=0.7, text_weight=0.2),
    )  # fmt: skip
    chosen = (AdapterChoice(id=ink.id, weight=0.5, text_weight=0.1),)
    found = made(ws, prompt="<lora:INK:0.25> a <lora:ink:0.5>", adapters=chosen)
    assert found.adapters == (AdapterChoice(id=ink.id, weight=1.25, text_weight=0.85),)
    found = made(ws, prompt=f"a <lora:{wash.id}>")
    assert found.adapters == (AdapterChoice(id=wash.id, weight=1.0),)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"prompt": "<lora:inc:1>"},
            r"<lora:inc>: no adapter has this name\. did you mean ink",
        ),
        ({"prompt": "<lora:zzz:1>"}, "see `studio adapters list`"),
        ({"prompt": "<lora:wosk:1>"}, "see `studio adapters list`"),
        ({"prompt": "<lora:ink:3> <lora:ink:3>"}, "adapter ink: has weight 6 with what its tags add"),
        ({"prompt": "a", "negative": "b <lora:ink:1>"}, "negative prompt: names an adapter"),
        ({"prompt": "__style__", "count": 12}, "chooses another adapter for each picture"),
        ({"prompt": "a __color__"}, "__colour__"),
    ],
)
@pytest.mark.usefixtures("ink")
def test_what_is_wrong_is_said_before_the_queue(ws: Workspace, wash: Any, changes: Any, says: str):
    ws.catalog.update(type(wash), wash.id, name="wash")
    before = len(list((ws.home / "samples").iterdir()))
    with pytest.raises(BadInput, match=says) as caught:
        submit(ws, request(ws, **changes))
    assert "\n" not in str(caught.value)
    assert len(list((ws.home / "samples").iterdir())) == before
    assert ws.catalog.count(Sample) == 0
    ws.catalog.update(type(wash), wash.id, name="Wash of old Ink")


def test_adapters_of_one_name_are_told_apart(ws: Workspace, ink: Any):
    other = add_adapter(ws, "in:k", seed=8)
    third = add_adapter(ws, "in*k", seed=9)
    assert find_adapter(ws, "ink", "sd15").id == ink.id
    with pytest.raises(BadInput, match="is not unique"):
        find_adapter(ws, "in-k", "sd15")
    ws.catalog.update(type(other), third.id, family="sdxl")
    assert find_adapter(ws, "in-k", "sd15").id == other.id
    for one in (other, third):
        ws.catalog.delete(type(one), one.id)


def embedding(ws: Workspace, name: str, seed: int = 0) -> Path:
    rows = np.random.default_rng(seed).normal(size=(2, WIDTH)).astype(np.float32)
    path = ws.home / "embeddings" / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"emb_params": rows}, path)
    return path


def test_embeddings_that_a_prompt_names(ws: Workspace):
    zork, grue = embedding(ws, "Zork"), embedding(ws, "more/grue.v2")
    found, words = ready(ws, request(ws, prompt="a zork, zorks", negative="(grue.v2:0.8)"), "sd15")
    assert words == {"Zork": zork, "grue.v2": grue}
    assert [choice.name for choice in found.embeddings] == ["Zork", "grue.v2"]
    assert ready(ws, found, "sd15") == (found, words)
    assert ready(ws, request(ws, prompt="zorks grue"), "sd15")[1] == {}
    embedding(ws, "Zork", 5)
    with pytest.raises(BadInput, match=r"Zork\.safetensors: is another file than the picture was made with"):
        ready(ws, found, "sd15")
    zork.unlink()
    with pytest.raises(BadInput, match=r"embedding Zork: is not there any more"):
        ready(ws, found, "sd15")
    (ws.home / "embeddings/old.pt").write_bytes(b"\x80\x04pickle")
    with pytest.raises(BadInput, match=r"embedding old\.pt: is a pickle, which can run code"):
        ready(ws, request(ws, prompt="an old hat"), "sd15")
    (ws.home / "embeddings/old.pt").unlink()
    grue.unlink()


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"weights": np.zeros((2, 3), np.float32)}, "is no embedding: it has 'weights'"),
        ({"emb_params": np.zeros((2, 3, 4), np.float32)}, "'emb_params' is not the vectors of a word"),
        ({"emb_params": np.zeros((76, 4), np.float32)}, "is not the vectors of a word"),
        ({"emb_params": np.full((2, 4), np.nan, np.float32)}, "finite"),
    ],
)
def test_files_that_are_no_embeddings(tmp_path: Path, tensors: Any, says: str):
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(BadInput, match=says):
        read_embedding(tmp_path / "a.safetensors")


def test_embeddings_of_other_shapes_of_file(tmp_path: Path):
    one = np.arange(8, dtype=np.float16)
    save_file({"clip_l": one, "clip_g": one.reshape(2, 4)}, tmp_path / "a.safetensors")
    rows = read_embedding(tmp_path / "a.safetensors")
    assert {name: value.shape for name, value in rows.items()} == {
        "text_encoder": (1, 8),
        "text_encoder_2": (2, 4),
    }


def test_the_task_carries_all_that_is_drawn(ws: Workspace, ink: Any):
    embedding(ws, "Zork")
    sample = submit(ws, request(ws, prompt="a zork __colour__ <lora:ink:0.5>", count=2))
    read = SampleTask.read(ws.home / "samples" / sample.id)
    assert [(item.word, item.path) for item in read.embeddings] == [("Zork", "embeddings/Zork.safetensors")]
    assert [item.name for item in read.adapters] == ["ink"]
    assert Path(read.resolved(ws.resolve).embeddings[0].path).is_file()
    assert read.request.template == "a zork __colour__"
    assert [text for text, _ in read.request.resolved] == [read.request.texts(i)[0] for i in range(2)]
    assert SampleRequest.model_validate(sample.request) == read.request
    assert sample.adapters[0].adapter_id == ink.id
    ws.catalog.cancel_job(ws.catalog.list(type_of_job())[0].id)


def type_of_job() -> Any:
    from registry.records import Job

    return Job


def test_the_engine_draws_each_text(ws: Workspace):
    engine = Engine(device="cpu")

    def draw(**changes: Any) -> list[np.ndarray]:
        pictures: list[np.ndarray] = []
        engine.draw(task(ws, **changes), keep=lambda _i, picture, _s: pictures.append(np.asarray(picture)))
        return pictures

    asked = {"steps": 4, "cfg": 4.0}
    both = draw(**asked, prompt="x", count=2, resolved=(("a red circle", ""), ("a blue square", "red")))
    one = draw(**asked, prompt="a red circle")
    two = draw(**asked, prompt="a blue square", negative="red", seed=6)
    assert np.array_equal(both[0], one[0])
    assert np.array_equal(both[1], two[0])
    switched = draw(**asked, prompt="a [red circle:blue square:0.5]")[0]
    assert not np.array_equal(switched, one[0])
    assert np.array_equal(draw(**asked, prompt="a [red circle:blue square:4]")[0], one[0])
    assert np.array_equal(draw(**asked, prompt="(a red circle:1)")[0], one[0])
    for other in (
        "a (red:1.4) circle",
        "a red circle AND blue:0.5",
        "a red circle BREAK b",
        "a red circle, " * 30,
    ):
        picture = draw(**asked, prompt=other)[0]
        assert picture.shape == one[0].shape
        assert not np.array_equal(picture, one[0])
    embedding(ws, "Zork")
    plain = draw(**asked, prompt="a zork circle")[0]
    asked_for = task(ws, **asked, prompt="a zork circle")
    from dataclasses import replace

    from studio.sampling.task import TaskEmbedding

    path = str(ws.home / "embeddings/Zork.safetensors")
    with_it = replace(asked_for, embeddings=(TaskEmbedding(word="Zork", path=path),))
    pictures: list[np.ndarray] = []
    engine.draw(with_it, keep=lambda _i, picture, _s: pictures.append(np.asarray(picture)))
    assert not np.array_equal(pictures[0], plain)
    assert np.array_equal(draw(**asked, prompt="a zork circle")[0], plain)


def test_pictures_of_one_text_share_a_batch():
    assert batches([0, 1, 2, 3, 5], 2, lambda _: "a") == [[0, 1], [2, 3], [5]]
    assert batches([0, 1, 2, 3], 4, lambda index: index // 3) == [[0, 1, 2], [3]]
    assert batches([], 4, str) == []


def test_the_pocket_base_reads_the_width_that_is_used_here(ws: Workspace):
    from registry.files import read_json

    folder = ws.resolve(ws.catalog.get(Base, "pocket").location)
    assert read_json(folder / "text_encoder/config.json")["hidden_size"] == WIDTH
