"""An adapter's new words mean in the sampler, and in diffusers, what they meant in training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from registry.formats.export import export_adapter
from registry.formats.header import read_header
from registry.records import Adapter
from studio.adapters import FOLDER
from studio.sampling.engine import Engine
from studio.workspace import Workspace
from tests.support.adapters import make_form, write_run_file
from tests.support.sampling import MODULES, add_file, pocket_shapes, task

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
PROMPT = "a zork circle"


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace.open(tmp_path_factory.mktemp("words") / "home")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(device="cpu")


def vectors(ws: Workspace, seed: int) -> np.ndarray:
    """Two vectors as wide as the pocket base reads."""
    folder = Path(task(ws).base.location) / "text_encoder"
    table = next(
        v for k, v in load_file(next(folder.glob("*.safetensors"))).items() if "token_embedding" in k
    )
    return np.random.default_rng(seed).normal(size=(2, table.shape[1])).astype(np.float32) * table.std() * 3


def add_words(ws: Workspace, name: str, seed: int, *, lora: bool) -> Adapter:
    file = ws.home / FOLDER / f"{name}.safetensors"
    tensors: dict[str, np.ndarray] = {"text_encoder.new_tokens.zork": vectors(ws, seed)}
    metadata = {"studio.family": "sd15"}
    if lora:
        write_run_file(make_form(pocket_shapes(ws, MODULES), alpha=3.0), file)
        tensors |= load_file(file)
        metadata |= read_header(file).metadata
    save_file(tensors, file, metadata)
    return add_file(ws, name, file)


def draw(engine: Engine, wanted: Any) -> np.ndarray:
    pictures: list[np.ndarray] = []
    engine.draw(
        wanted, keep=lambda _index, picture, _scheduler: pictures.append(np.asarray(picture).astype(int))
    )
    return pictures[0]


def test_words_speak_while_their_adapter_is_in_use(ws: Workspace, engine: Engine):
    one, two = add_words(ws, "one", 1, lora=False), add_words(ws, "two", 2, lora=True)
    plain = draw(engine, task(ws, prompt=PROMPT))
    first = draw(engine, task(ws, (one, 1.0), prompt=PROMPT))
    second = draw(engine, task(ws, (two, 1.0), prompt=PROMPT))
    assert not np.array_equal(first, plain)
    assert not np.array_equal(second, first)
    assert np.array_equal(draw(engine, task(ws, (one, 1.0), prompt=PROMPT)), first)
    assert np.array_equal(draw(engine, task(ws, (one, 0.0), prompt=PROMPT)), plain)
    assert np.array_equal(draw(engine, task(ws, prompt=PROMPT)), plain)
    known = draw(engine, task(ws, prompt="a red circle"))
    assert np.array_equal(draw(engine, task(ws, (one, 1.0), prompt="a red circle")), known)


def test_the_exported_embedding_draws_the_same_in_diffusers(ws: Workspace, engine: Engine, tmp_path: Path):
    from diffusers import StableDiffusionPipeline  # type: ignore[attr-defined]

    adapter = add_words(ws, "three", 3, lora=False)
    report = export_adapter(ws.resolve(adapter.path), tmp_path / "zork.safetensors", family="sd15")
    wanted = task(ws, (adapter, 1.0), prompt=PROMPT, steps=6, negative="blue", cfg=4.0)
    pipe: Any = StableDiffusionPipeline.from_pretrained(wanted.base.location, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_textual_inversion(report.path, token="zork")
    theirs = pipe(
        PROMPT, negative_prompt="blue", num_inference_steps=6, guidance_scale=4.0,
        height=32, width=32, generator=torch.Generator("cpu").manual_seed(5), output_type="np",
    ).images[0]  # fmt: skip
    assert np.abs(draw(engine, wanted) - theirs * 255).max() <= 1.0
