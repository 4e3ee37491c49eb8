"""The main job on toy bases of SDXL, SD3.5 and FLUX.1, up to the exported adapter in diffusers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.bases import save_base
from tests.support.cli import Studio
from tests.support.runs import draw_pictures
from trainers.families import FAMILIES

pytestmark = pytest.mark.e2e
PROMPT, SEED, STEPS, SIDE, CFG = "a red disc, sks", 5, 3, 32, 3.0
SETS = (
    "train.max_steps=4", "train.resolution=32", "train.batch_size=2", "train.accumulate=1",
    "data.bucket_step=8", "train.precision=fp32", "checkpoints.every=4", "preview.every=4",
    "preview.steps=2", "preview.size=32x32",
    "adapter.rank=4", "adapter.alpha=2", "optimizer.name=adamw", "optimizer.lr=0.02", "schedule.warmup=0",
    "adapter.train_text_encoder=true", 'preview.prompts=["a red disc"]',
)  # fmt: skip


@pytest.fixture(scope="module")
def studio(tmp_path_factory) -> Studio:
    return Studio(tmp_path_factory.mktemp("home"))


def toy(name: str, folder: Path) -> Path:
    """The toy base; SDXL with two residual blocks a level, which kohya's block numbers take for granted."""
    save_base(name, folder)
    if name == "sdxl":
        unet: Any = FAMILIES[name].load_class().tiny()["unet"]
        type(unet).from_config({**unet.config, "layers_per_block": 2}).save_pretrained(folder / "unet")
    return folder


def drawn_by_diffusers(name: str, folder: Path, adapter: Path | None) -> np.ndarray:
    """The pipeline's picture, (H, W, 3) from 0 to 1, from the noise that the sampler draws."""
    import torch

    pipe: Any = FAMILIES[name].load_class().pipeline_class().from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    if adapter is not None:
        pipe.load_lora_weights(adapter.parent, weight_name=adapter.name)
    noise, options = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(SEED)), {}
    if name == "flux1":
        noise = pipe._pack_latents(noise, *noise.shape)
        options = {"max_sequence_length": 512}
    return pipe(PROMPT, height=SIDE, width=SIDE, num_inference_steps=STEPS, guidance_scale=CFG, latents=noise,
                output_type="np", **options).images[0]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["sdxl", "sd35", "flux1"])
def test_the_main_job(studio, tmp_path, name):
    folder, discs = toy(name, tmp_path / "base"), f"{name}-discs"
    pictures = tmp_path / "pictures"
    for item in draw_pictures(pictures):
        Path(item.image).with_suffix(".txt").write_text(f"{item.caption}, [trigger]")
    base = studio("bases", "add", name, folder)
    assert (base["family"], base["kind"]) == (name, "folder")
    studio("datasets", "add", discs, pictures, "--trigger", "sks")
    options = [word for item in SETS for word in ("--set", item)]
    run = studio("train", "--dataset", discs, "--base", name, "--name", discs, *options, "--wait")
    trained = studio("runs", "show", run["id"])
    assert (trained["state"], trained["step"], len(trained["adapters"])) == ("finished", 4, 1)
    previews = list((studio.home / "runs" / run["id"] / "previews").glob("*.png"))
    assert len(previews) == 3  # the base's, the first step's and the last
    adapter = studio("adapters", "show", trained["adapters"][0])
    encoders = FAMILIES[name].load_class().clip_encoders
    assert (adapter["family"], tuple(adapter["targets"])) == (name, (FAMILIES[name].denoiser, *encoders))

    def draw(where: str, *more: object) -> np.ndarray:
        options = ["--prompt", PROMPT, "--seed", SEED, "--steps", STEPS, "--cfg", CFG]
        options += ["--size", f"{SIDE}x{SIDE}"]
        files = studio("sample", "--base", name, *options, "--out", tmp_path / where, *more)["files"]
        return np.asarray(Image.open(files[0]).convert("RGB"), np.float32) / 255

    plain, full = draw("plain"), draw("full", "--adapter", f"{discs}:1")
    assert np.array_equal(plain, draw("off", "--adapter", f"{discs}:0"))
    assert np.abs(full - plain).max() > 2 / 255, "the adapter must show"
    assert np.abs(drawn_by_diffusers(name, folder, None) - plain).max() < 1e-3 + 0.5 / 255

    for layout in ("auto", "kohya", "diffusers"):
        out = tmp_path / f"{layout}.safetensors"
        report = studio("adapters", "export", discs, "--format", layout, "--out", out)
        assert report["matched"] == report["modules"] > 0
        verdicts = {tool["tool"]: tool["verdict"] for tool in report["tools"]}
        if layout == "auto":
            assert report["layout"] == ("kohya" if name == "sdxl" else "diffusers")
            assert verdicts["diffusers"] == verdicts["ComfyUI"] == "loads"
        if verdicts["diffusers"] == "loads":
            assert np.abs(drawn_by_diffusers(name, folder, out) - full).max() < 1e-3 + 0.5 / 255
