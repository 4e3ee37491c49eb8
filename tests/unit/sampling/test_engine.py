"""The engine on the pocket base: exactness, adapters against merged weights, cancelling, memory, failures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from registry.errors import BadInput, StudioError
from registry.formats.load import load_adapter
from studio.sampling.engine import Drawn, Engine
from studio.sampling.painting import Cancelled
from studio.sampling.progress import Progress
from studio.sampling.schedulers import SCHEDULERS
from studio.sampling.task import SampleTask
from studio.workspace import Workspace
from tests.support.adapters import make_form, write_run_file
from tests.support.sampling import MODULES, TEXT_MODULES, add_adapter, add_file, task

# diffusers' samplers call numpy in ways it will drop; nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace.open(tmp_path_factory.mktemp("engine") / "home")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(device="cpu")


@pytest.fixture(scope="module")
def ink(ws: Workspace):
    return add_adapter(ws, "ink", seed=1, alpha=3.0)


@pytest.fixture(scope="module")
def wash(ws: Workspace):
    return add_adapter(ws, "wash", MODULES[2:4] + TEXT_MODULES, seed=2, rank=2, alpha=4.0)


def draw(engine: Engine, wanted: SampleTask, **options: Any) -> list[np.ndarray]:
    pictures: dict[int, np.ndarray] = {}

    def keep(index: int, picture: Any, _scheduler: str) -> None:
        pictures[index] = np.asarray(picture).astype(int)

    engine.draw(wanted, keep=keep, **options)
    return [pictures[index] for index in sorted(pictures)]


def report(engine: Engine, wanted: SampleTask) -> Drawn:
    return engine.draw(wanted, keep=lambda *_: None)


def test_equals_the_pipeline_of_diffusers(ws: Workspace, engine: Engine):
    from diffusers import StableDiffusionPipeline  # type: ignore[attr-defined]

    wanted = task(ws, steps=6, negative="blue", cfg=4.0)
    pipe: Any = StableDiffusionPipeline.from_pretrained(wanted.base.location, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        "a red circle", negative_prompt="blue", num_inference_steps=6, guidance_scale=4.0,
        height=32, width=32, generator=torch.Generator("cpu").manual_seed(5), output_type="np",
    ).images[0]  # fmt: skip
    ours = draw(engine, wanted)[0]
    assert np.abs(ours - theirs * 255).max() <= 1.0


def test_a_picture_depends_on_its_own_seed_alone(ws: Workspace, engine: Engine):
    three = draw(engine, task(ws, count=3))
    alone = [draw(engine, task(ws, seed=5 + i))[0] for i in range(3)]
    assert all(np.array_equal(a, b) for a, b in zip(three, alone, strict=True))
    assert not np.array_equal(three[0], three[1])
    wrapped = draw(engine, task(ws, seed=2**32 - 1, count=2))
    assert np.array_equal(wrapped[1], draw(engine, task(ws, seed=0))[0])


def test_weight_zero_and_switching_back_are_exact(ws: Workspace, engine: Engine, ink: Any, wash: Any):
    cold = draw(Engine(device="cpu"), task(ws))[0]
    base = draw(engine, task(ws))[0]
    with_ink = draw(engine, task(ws, (ink, 1.0)))[0]
    both = draw(engine, task(ws, (ink, 0.5), (wash, 1.0)))[0]
    assert np.array_equal(cold, base)
    assert not np.array_equal(with_ink, base)
    assert not np.array_equal(both, with_ink)
    assert np.array_equal(draw(engine, task(ws, (ink, 0.0), (wash, 0.0)))[0], base)
    assert np.array_equal(draw(engine, task(ws, (ink, 1.0), (wash, 0.0)))[0], with_ink)
    assert np.array_equal(draw(engine, task(ws))[0], base)
    # What else was loaded before makes no difference either.
    assert np.array_equal(draw(Engine(device="cpu"), task(ws, (ink, 0.5), (wash, 1.0)))[0], both)


def merge(engine: Engine, wanted: SampleTask, deltas: dict[str, np.ndarray]) -> None:
    """Add weight changes to a base that `engine` has loaded."""
    (loaded,) = engine._shelf.bases.values()
    for module, delta in deltas.items():
        component, _, path = module.partition(".")
        part = loaded.family.part(component)
        layer = part.get_submodule(path.removeprefix("text_model.") if component == "text_encoder" else path)
        with torch.no_grad():
            layer.weight += torch.from_numpy(delta)


@pytest.mark.parametrize("weights", [(0.7, 0.7), (1.2, -0.5), (0.0, 1.0)])
def test_adapters_equal_merged_weights(
    ws: Workspace, engine: Engine, ink: Any, wash: Any, weights: tuple[float, float]
):
    wanted = task(ws, (ink, 0.4), (wash, *weights))
    separate = draw(engine, wanted)[0]
    merged = Engine(device="cpu")
    draw(merged, task(ws))
    changes: dict[str, np.ndarray] = {}
    for use in wanted.adapters:
        form, _, _ = load_adapter(Path(use.path), "sd15")
        for module in form.modules:
            weight = use.text_weight if module.startswith("text_encoder") else use.weight
            changes[module] = changes.get(module, 0) + weight * form.delta(module)
    with torch.inference_mode():
        merge(merged, wanted, {name: np.asarray(change, np.float32) for name, change in changes.items()})
    assert np.abs(draw(merged, task(ws))[0] - separate).max() <= 1


def test_old_adapters_leave_and_plain_layers_come_back(ws: Workspace, ink: Any):
    from studio.sampling.layers import AdaptedLayer

    engine = Engine(device="cpu")
    plain = draw(engine, task(ws))[0]
    (loaded,) = engine._shelf.bases.values()
    draw(engine, task(ws, (ink, 1.0), steps=1))
    loaded.stack._budget = 4 * loaded.stack.nbytes
    many = [add_adapter(ws, f"many-{seed}", seed=10 + seed) for seed in range(6)]
    for item in many:
        draw(engine, task(ws, (item, 1.0), steps=1))
    assert list(loaded.stack._kept) == [item.tensor_sha256 for item in many[-4:]]
    unet = loaded.family.denoiser
    assert isinstance(unet.get_submodule("conv_in"), AdaptedLayer)
    loaded.stack.clear()
    assert not any(isinstance(module, AdaptedLayer) for module in unet.modules())
    assert np.array_equal(draw(engine, task(ws))[0], plain)


def test_a_schedule_and_blocks_change_the_picture(ws: Workspace, engine: Engine, ink: Any):
    """On from the half is neither on nor off; all blocks off is off."""
    from dataclasses import replace

    base, always = draw(engine, task(ws, (ink, 0.0)))[0], draw(engine, task(ws, (ink, 1.0)))[0]
    wanted = task(ws, (ink, 1.0))
    (chosen,) = wanted.adapters
    half = replace(chosen, schedule=((0.5, 0.0), (0.5, 1.0)))
    late = draw(engine, replace(wanted, adapters=(half,)))[0]
    assert not np.array_equal(late, base)
    assert not np.array_equal(late, always)
    assert np.array_equal(draw(engine, replace(wanted, adapters=(half,)))[0], late)
    never = replace(chosen, schedule=((0.0, 0.0),))
    assert np.array_equal(draw(engine, replace(wanted, adapters=(never,)))[0], base)
    nowhere = replace(chosen, blocks={"IN": 0.0, "MID": 0.0, "OUT": 0.0, "REST": 0.0})
    assert np.array_equal(draw(engine, replace(wanted, adapters=(nowhere,)))[0], base)


def test_an_adapter_of_another_base_is_refused_with_both_dimensions(ws: Workspace, engine: Engine):
    module = MODULES[3]
    foreign = add_file(
        ws, "foreign", write_run_file(make_form({module: (320, 768)}), ws.home / "adapters" / "f.safetensors")
    )
    before = draw(engine, task(ws))[0]
    with pytest.raises(BadInput, match="768 -> 320 in the adapter and 96 -> 96 in the base"):
        draw(engine, task(ws, (foreign, 1.0)))
    assert np.array_equal(draw(engine, task(ws))[0], before)


def test_modules_without_a_place_are_reported(ws: Workspace, engine: Engine, ink: Any):
    extra = "unet.down_blocks.3.resnets.0.conv1"
    form = make_form({MODULES[2]: (96, 96), extra: (96, 96, 3, 3)})
    partly = add_file(ws, "partly", write_run_file(form, ws.home / "adapters" / "p.safetensors"))
    drawn = report(engine, task(ws, (partly, 1.0)))
    assert drawn.reports[0].unmatched == (extra,)
    assert drawn.reports[0].matched == 1
    assert "1 of 2 modules" in drawn.warnings[0]


def test_prompts_of_any_length_are_read(ws: Workspace, engine: Engine):
    long = task(ws, prompt="circle " * 100 + "red", steps=2)
    assert report(engine, long).warnings == []
    shorter = task(ws, prompt="circle " * 100, steps=2)
    assert not np.array_equal(draw(engine, long)[0], draw(engine, shorter)[0])


ONE_OF_EACH = {row.sampler: name for name, row in reversed(SCHEDULERS.items())}.values()


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_sampler_draws_the_same_picture_twice(ws: Workspace, engine: Engine, name: str):
    wanted = task(ws, scheduler=name, steps=3)
    first, second = draw(engine, wanted)[0], draw(engine, wanted)[0]
    assert np.array_equal(first, second)
    assert first.std() > 0


def test_cancel_takes_effect_at_the_next_step(ws: Workspace, engine: Engine):
    steps: list[int] = []

    def say(progress: Progress) -> None:
        if progress.phase == "drawing":
            steps.append(progress.step)

    with pytest.raises(Cancelled):
        draw(engine, task(ws, steps=50), say=say, cancelled=lambda: len(steps) == 3)
    assert steps == [1, 2, 3]
    assert len(draw(engine, task(ws))) == 1


def test_previews_look_like_the_picture(ws: Workspace, monkeypatch: pytest.MonkeyPatch):
    """Also the fitted map for large VAEs: correlated with the real decode."""
    from studio.sampling import progress as module
    from studio.sampling.preview import LatentPreview

    monkeypatch.setattr(module, "PREVIEW_EVERY", 0.0)
    engine = Engine(device="cpu")
    seen: list[Any] = []
    picture = draw(engine, task(ws, steps=12, width=64, height=64), say=lambda p: seen.append(p.preview))[0]
    previews = [np.asarray(item) for item in seen if item is not None]
    assert len(previews) == 12
    assert np.abs(previews[-1].astype(int) - picture).max() == 0
    (loaded,) = engine._shelf.bases.values()
    monkeypatch.setattr("studio.sampling.preview.SMALL", 0)
    fitted = LatentPreview(loaded.family)
    latents, _ = loaded.family.encode_image(
        torch.from_numpy(picture / 127.5 - 1).permute(2, 0, 1)[None].float()
    )
    small = fitted.rgb(latents)[0].numpy()
    real = (picture / 127.5 - 1).reshape(16, 4, 16, 4, 3).mean((1, 3)).transpose(2, 0, 1)
    assert np.corrcoef(small.ravel(), real.ravel())[0, 1] > 0.8


def test_out_of_memory_once_goes_on_and_twice_is_said(
    ws: Workspace, engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    expected = draw(engine, task(ws, count=2))
    (loaded,) = engine._shelf.bases.values()
    real, fails = loaded.family.decode_image, [False, True]

    def scarce(latents: Any) -> Any:
        if fails and fails.pop(0):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real(latents)

    monkeypatch.setattr(loaded.family, "decode_image", scarce)
    again = draw(engine, task(ws, count=2))
    assert [np.abs(a - b).max() <= 1 for a, b in zip(again, expected, strict=True)] == [True, True]
    fails[:] = [True, True]
    with pytest.raises(StudioError, match="size 32x32: needs more memory"):
        draw(engine, task(ws))
    monkeypatch.undo()
    assert len(draw(engine, task(ws))) == 1  # the base is loaded again


def test_values_that_are_not_finite_are_said(ws: Workspace, engine: Engine):
    wild = add_adapter(ws, "wild", MODULES[:1], seed=3, alpha=1e30, conv_alpha=1e38)
    with pytest.raises(StudioError, match="not finite"):
        draw(engine, task(ws, (wild, 4.0)))


def test_a_size_that_is_no_whole_cell_is_refused(
    ws: Workspace, engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    draw(engine, task(ws))
    (loaded,) = engine._shelf.bases.values()
    monkeypatch.setattr(type(loaded.family), "latent_factor", property(lambda _: 16))
    with pytest.raises(BadInput, match="multiples of 16"):
        draw(engine, task(ws, width=40))


def test_bases_beyond_the_budget_leave(ws: Workspace, tmp_path: Path):
    import shutil
    from dataclasses import replace

    engine = Engine(device="cpu", budget=12_000_000)  # the pocket base is 11 MB
    first = task(ws)
    copy = tmp_path / "copy"
    shutil.copytree(first.base.location, copy)
    second = replace(first, base=replace(first.base, location=str(copy), weight_hash="another"))
    one = draw(engine, first)[0]
    assert np.array_equal(draw(engine, second)[0], one)
    assert list(engine._shelf.bases) == ["another"]
