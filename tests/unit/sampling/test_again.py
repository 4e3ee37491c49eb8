"""A picture made again from what it says about itself."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from registry.errors import BadInput, StudioError
from registry.records import Adapter, Base
from studio.cli import run
from studio.sampling.again import request_of
from studio.sampling.metadata.reading import PARAMETERS
from studio.sampling.metadata.writing import write_picture
from studio.sampling.request import AdapterChoice
from studio.sampling.submit import submit, wait
from studio.workspace import Workspace
from tests.support.sampling import add_adapter, request

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace.open(tmp_path_factory.mktemp("again") / "home")


@pytest.fixture(scope="module")
def ink(ws: Workspace) -> Adapter:
    return add_adapter(ws, "ink", seed=1)


def drawn(ws: Workspace, **changes: Any) -> list[Path]:
    made = submit(ws, request(ws, **changes))
    return wait(ws, made)


def written(ws: Workspace, ink: Adapter, path: Path, **changes: Any) -> Path:
    """A grey picture that says it was drawn with ink on the pocket base."""
    base = ws.catalog.get(Base, "pocket")
    choice = AdapterChoice(id=ink.id, weight=0.7)
    mark: dict[str, Any] = {"id": ink.id, "name": ink.name, "tensor_sha256": ink.tensor_sha256} | changes
    used = type("Used", (), {**mark, "weight": 0.7, "text_weight": None})()
    own = request(ws, adapters=(choice,), clip_skip=2, template="a {red|blue} circle")
    write_picture(
        Image.new("RGB", (32, 32)), path, own,
        base_name="pocket", base_hash=changes.get("base_hash", base.weight_hash), adapters=[used],
    )  # fmt: skip
    return path


def other(tmp_path: Path, text: str) -> Path:
    texts = PngInfo()
    texts.add_text(PARAMETERS, text)
    path = tmp_path / "other.png"
    Image.new("RGB", (8, 8)).save(path, pnginfo=texts)
    return path


def test_the_same_bytes_come_again(ws: Workspace, ink: Adapter, tmp_path: Path, capsys: Any):
    choice = AdapterChoice(id=ink.id, weight=0.5, schedule=((0.0, 0.0), (1.0, 1.0)))
    first = drawn(ws, prompt="a {red|blue} (circle:1.2)", adapters=(choice,), count=2, scheduler="Euler a")
    command = ["--home", str(ws.home), "sample", "--from", str(first[1]), "--out", str(tmp_path)]
    assert run(command) == 0
    (again,) = tmp_path.glob("*.png")
    assert again.read_bytes() != first[0].read_bytes()
    with Image.open(again) as new, Image.open(first[1]) as old:
        assert new.tobytes() == old.tobytes()
    assert request_of(ws, again) == request_of(ws, first[1])

    assert run([*command, "--seed", "9"]) == 0
    newest = max(tmp_path.glob("*.png"), key=lambda path: path.stat().st_mtime_ns)
    assert request_of(ws, newest) == request_of(ws, again).model_copy(update={"seed": 9})
    capsys.readouterr()
    assert run([*command, "--steps", "9"]) == 2
    assert capsys.readouterr().err == (
        "error: --steps: does not go with --from. leave it out; --seed and --count may be given.\n"
    )


def test_an_adapter_is_found_by_its_weights(ws: Workspace, ink: Adapter, tmp_path: Path):
    picture = written(ws, ink, tmp_path / "a.png", id="gone", name="another name")
    assert request_of(ws, picture).adapters == (AdapterChoice(id=ink.id, weight=0.7),)


def test_other_weights_are_refused(ws: Workspace, ink: Adapter, tmp_path: Path):
    picture = written(ws, ink, tmp_path / "a.png", tensor_sha256="0" * 64)
    with pytest.raises(BadInput, match="adapter ink: has other weights than are meant"):
        request_of(ws, picture)
    picture = written(ws, ink, tmp_path / "b.png", base_hash="0" * 64)
    with pytest.raises(BadInput, match="base pocket: has other weights than the picture was made with"):
        request_of(ws, picture)


def test_a1111_says_the_usual_settings(ws: Workspace, ink: Adapter, tmp_path: Path):
    text = (
        "a red circle <lora:ink:0.6>\nNegative prompt: blue\n"
        "Steps: 7, Sampler: DPM++ 2M, Schedule type: Karras, "
        f'CFG scale: 3.5, Seed: 12, Size: 64x32, Model: pocket, Clip skip: 2, Lora hashes: "ink: '
        f'{ink.tensor_sha256[:12]}", Version: v1.10.1'
    )
    made = request_of(ws, other(tmp_path, text))
    assert made == request(
        ws, adapters=(AdapterChoice(id=ink.id, weight=0.6),), negative="blue", steps=7, cfg=3.5, seed=12,
        width=64, height=32, scheduler="DPM++ 2M Karras", clip_skip=2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "does not say how it was made"),
        ("x\nSteps: 7, Sampler: Euler, Seed: 1, Model: dreams", "base dreams: is not in the catalog"),
        ("x <lora:foam:1>\nSteps: 7, Sampler: Euler, Seed: 1, Model: pocket", "foam"),
        ("x\nSteps: 7000, Sampler: Euler, Seed: 1, Model: pocket", "says settings that cannot be drawn here"),
        ("x\nSteps: 7, Sampler: Euler, Seed: 1, Model: pocket, Clip skip: 99", "cannot be drawn here"),
    ],
)
def test_what_cannot_be_made_again_is_said(ws: Workspace, ink: Adapter, tmp_path: Path, text: str, said: str):
    with pytest.raises(StudioError, match=said):
        request_of(ws, other(tmp_path, text))
