"""What pictures of ComfyUI, InvokeAI and SwarmUI say; JPEG and WebP of ours; nothing foreign breaks it."""

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from registry.errors import BadInput
from studio.sampling.metadata.a1111 import a1111_parameters, parse_a1111
from studio.sampling.metadata.comfyui import parse_comfyui
from studio.sampling.metadata.invokeai import parse_invokeai
from studio.sampling.metadata.reading import read_metadata
from studio.sampling.metadata.said import AdapterMark, PictureMetadata
from studio.sampling.metadata.swarmui import parse_swarmui
from studio.sampling.metadata.writing import write_picture
from studio.sampling.request import SampleRequest
from studio.sampling.request_modes import HiresChoice

PLAIN: dict[str, Any] = {
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd/v1-5-pruned.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768, "batch_size": 1}},
    "10": {
        "class_type": "LoraLoader",
        "inputs": {
            "lora_name": "styles\\ink.safetensors", "strength_model": 0.8, "strength_clip": 0.5,
            "model": ["4", 0], "clip": ["4", 1],
        },
    },
    "11": {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"lora_name": "cat.safetensors", "strength_model": 0.6, "model": ["10", 0]},
    },
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat in ink", "clip": ["10", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["10", 1]}},
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 156680208700286, "steps": 20, "cfg": 8, "sampler_name": "dpmpp_2m", "scheduler": "karras",
            "denoise": 1, "model": ["11", 0], "positive": ["6", 0], "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
}  # fmt: skip

CUSTOM: dict[str, Any] = {
    "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "flux1-dev.safetensors"}},
    "2": {"class_type": "String", "inputs": {"value": "a fox"}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"text": ["2", 0], "clip": ["9", 0]}},
    "4": {"class_type": "FluxGuidance", "inputs": {"guidance": 3.5, "conditioning": ["3", 0]}},
    "5": {"class_type": "BasicGuider", "inputs": {"model": ["1", 0], "conditioning": ["4", 0]}},
    "6": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
    "7": {"class_type": "BasicScheduler", "inputs": {"scheduler": "simple", "steps": 28, "model": ["1", 0]}},
    "8": {"class_type": "RandomNoise", "inputs": {"noise_seed": 42}},
    "9": {"class_type": "DualCLIPLoader", "inputs": {"clip_name1": "t5", "clip_name2": "clip_l"}},
    "11": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 1024, "height": 1024, "batch_size": 1}},
    "10": {
        "class_type": "SamplerCustomAdvanced",
        "inputs": {
            "noise": ["8", 0], "guider": ["5", 0], "sampler": ["6", 0], "sigmas": ["7", 0],
            "latent_image": ["11", 0],
        },
    },
}  # fmt: skip

INVOKE: dict[str, Any] = {
    "generation_mode": "txt2img", "positive_prompt": "a fox", "negative_prompt": "rain", "width": 1024,
    "height": 768, "seed": 7, "cfg_scale": 7.5, "cfg_rescale_multiplier": 0.7, "steps": 30,
    "scheduler": "dpmpp_2m_k", "clip_skip": 1,
    "model": {"key": "k", "hash": "blake3:0", "name": "juggernaut", "base": "sdxl", "type": "main"},
    "loras": [{"model": {"key": "l", "name": "ink"}, "weight": 0.75}],
}  # fmt: skip

SWARM: dict[str, Any] = {
    "sui_image_params": {
        "prompt": "a fox", "negativeprompt": "rain", "model": "folder/sd_xl_base_1.0.safetensors", "seed": 7,
        "steps": 20, "cfgscale": 6.5, "width": 1024, "height": 768, "sampler": "euler_ancestral",
        "scheduler": "normal", "loras": ["styles/ink"], "loraweights": ["0.75"], "swarm_version": "0.9.7",
    }
}  # fmt: skip


def said(path: Path, **texts: str) -> PictureMetadata:
    """What a PNG with these texts says."""
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.new("RGB", (8, 8)).save(path / "a.png", pnginfo=info)
    return read_metadata(path / "a.png")


def test_comfyui(tmp_path: Path):
    found = said(tmp_path, prompt=json.dumps(PLAIN), workflow="{}")
    assert (found.source, found.prompt, found.negative) == ("comfyui", "a cat in ink", "blurry")
    assert (found.seed, found.steps, found.cfg) == (156680208700286, 20, 8)
    assert (found.width, found.height, found.scheduler) == (512, 768, "DPM++ 2M Karras")
    assert found.base_name == "v1-5-pruned"
    assert found.adapters == (AdapterMark("ink", 0.8, 0.5), AdapterMark("cat", 0.6))


def test_comfyui_in_parts(tmp_path: Path):
    found = said(tmp_path, prompt=json.dumps(CUSTOM))
    assert (found.prompt, found.negative, found.cfg) == ("a fox", "", 3.5)
    assert (found.seed, found.steps, found.scheduler) == (42, 28, "Euler Simple")
    assert (found.width, found.height, found.base_name) == (1024, 1024, "flux1-dev")


def test_comfyui_of_two_passes_is_told_by_the_first(tmp_path: Path):
    second = {
        "class_type": "KSampler",
        "inputs": PLAIN["3"]["inputs"] | {"seed": 1, "steps": 5, "denoise": 0.4, "latent_image": ["20", 0]},
    }
    larger = {"class_type": "LatentUpscale", "inputs": {"samples": ["3", 0], "width": 1024, "height": 1536}}
    graph = {"2": second, "20": larger} | PLAIN
    found = said(tmp_path, prompt=json.dumps(graph))
    assert (found.seed, found.steps, found.width) == (156680208700286, 20, 512)


def test_comfyui_tells_the_sides_of_a_control_apart(tmp_path: Path):
    passed = {"positive": ["6", 0], "negative": ["7", 0], "strength": 1.0, "control_net": ["21", 0]}
    graph = PLAIN | {
        "20": {"class_type": "ControlNetApplyAdvanced", "inputs": passed},
        "3": {"class_type": "KSampler",
              "inputs": PLAIN["3"]["inputs"] | {"positive": ["20", 0], "negative": ["20", 1]}},
    }  # fmt: skip
    found = said(tmp_path, prompt=json.dumps(graph))
    assert (found.prompt, found.negative) == ("a cat in ink", "blurry")
    zero = {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["6", 0]}}
    inputs = PLAIN["3"]["inputs"] | {"negative": ["22", 0]}
    graph = PLAIN | {"22": zero, "3": {"class_type": "KSampler", "inputs": inputs}}
    found = said(tmp_path, prompt=json.dumps(graph))
    assert (found.prompt, found.negative) == ("a cat in ink", "")


def test_large_graphs_cost_little():
    many = {"class_type": "X", "inputs": {f"i{n}": ["6", 0] for n in range(20_000)}}
    samplers = {f"s{n}": PLAIN["3"] for n in range(1500)}
    for graph in (PLAIN | {"6": many}, PLAIN | samplers):
        start = time.process_time()
        assert parse_comfyui(json.dumps(graph)) is not None
        assert time.process_time() - start < 0.5


def test_texts_that_are_no_account_of_a_picture_are_left_alone(tmp_path: Path):
    start = time.process_time()
    assert said(tmp_path, parameters="a" * 3_000_000).source == ""
    assert time.process_time() - start < 0.5


def test_damaged_values_are_no_fault(tmp_path: Path):
    half = json.dumps(SWARM).replace("a fox", "\\ud800 fox")
    assert said(tmp_path, parameters=half).prompt == "? fox"
    assert parse_a1111('x\nSteps: 7, Seed: 1, Foo bar: "\\ud800", CFG scale: 7').pairs["Foo bar"] == "?"
    own = {"request": {"base": "b"}, "base": {}, "adapters": [{"name": "x"}]}
    own["adapters"] = [{"name": "x", "weight": 10**400, "text_weight": None, "tensor_sha256": "", "id": ""}]
    assert said(tmp_path, lora_studio=json.dumps(own)).source == ""


@pytest.mark.parametrize("words", ["一个女孩, smile", "가나다", "\u3000x", "Ѐ ya"])
def test_any_script_comes_back_from_exif(tmp_path: Path, words: str):
    request = REQUEST.model_copy(update={"prompt": words, "format": "jpeg"})
    write_picture(Image.new("RGB", (8, 8)), tmp_path / "a.jpg", request)
    found = read_metadata(tmp_path / "a.jpg")
    assert found.texts["parameters"].startswith(words)
    assert found.pairs["Seed"] == "5"


def test_a_bomb_is_one_line(tmp_path: Path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(BadInput):
        read_metadata(tmp_path / "bomb.png")


def test_comfyui_in_webp(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0110] = "prompt:" + json.dumps(PLAIN)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", exif=exif)
    assert read_metadata(tmp_path / "a.webp").prompt == "a cat in ink"


def test_invokeai(tmp_path: Path):
    found = said(tmp_path, invokeai_metadata=json.dumps(INVOKE), invokeai_graph="{}")
    assert (found.source, found.prompt, found.negative) == ("invokeai", "a fox", "rain")
    assert (found.seed, found.steps, found.cfg) == (7, 30, 7.5)
    assert (found.width, found.height, found.scheduler) == (1024, 768, "DPM++ 2M Karras")
    assert (found.base_name, found.adapters) == ("juggernaut", (AdapterMark("ink", 0.75),))
    assert found.more == {"clip_skip": 2, "guidance_rescale": 0.7}


def test_swarmui(tmp_path: Path):
    found = said(tmp_path, parameters=json.dumps(SWARM, indent=2))
    assert (found.source, found.prompt, found.negative) == ("swarmui", "a fox", "rain")
    assert (found.seed, found.steps, found.cfg) == (7, 20, 6.5)
    assert (found.width, found.height, found.scheduler) == (1024, 768, "Euler a")
    assert (found.base_name, found.adapters) == ("sd_xl_base_1.0", (AdapterMark("ink", 0.75),))
    commas = {"sui_image_params": SWARM["sui_image_params"] | {"loras": "a, b", "loraweights": "1, x"}}
    assert said(tmp_path, parameters=json.dumps(commas)).adapters == (AdapterMark("a"), AdapterMark("b"))


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["3", "x", "a, b"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["3", "inputs", "positive", "latent_image", "text", "model", "lora", "lora_name", "loras",
                 "seed", "positive_prompt", "sui_image_params", "weight", "strength", "guider", "loraweights"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=30,
)  # fmt: skip


@given(JSONS)
def test_whatever_stands_there_is_no_fault(value: Any):
    text = json.dumps(value)
    for parse in (parse_comfyui, parse_invokeai, parse_swarmui):
        found = parse(text)
        assert found is None or isinstance(found.prompt, str)


@pytest.mark.parametrize("parse", [parse_comfyui, parse_invokeai, parse_swarmui, parse_a1111])
@pytest.mark.parametrize("text", ["[" * 100_000, "{" * 100_000, "a:" * 50_000, '"' * 100_000, "a" * 100_000])
def test_100_kb_take_no_time(parse: Any, text: str):
    start = time.process_time()
    parse(text)
    assert time.process_time() - start < 0.1


def test_100_kb_of_a1111_and_of_graph_take_no_time():
    text = "a cat, " * 14_000 + "\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 5, Size: 512x512"
    graph = {
        f"x{i}": {"class_type": "Note", "inputs": {"text": "y" * 20, "a": [f"x{i + 1}", 0]}}
        for i in range(1200)
    }
    for parse, said in ((parse_a1111, text), (parse_comfyui, json.dumps(PLAIN | graph))):
        assert len(said) > 95_000
        start = time.process_time()
        found = parse(said)
        assert time.process_time() - start < 0.1
        assert found is not None
        assert found.steps == 20


REQUEST = SampleRequest(base="basebaseid", prompt="猫 in ink", negative="blurry", seed=5, cfg=3.5)


@pytest.mark.parametrize(("format", "kind"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_every_format_says_how_it_was_made(tmp_path: Path, format: str, kind: str):
    request = REQUEST.model_copy(update={"format": format, "count": 2})
    write_picture(Image.new("RGB", (32, 32), "red"), tmp_path / "a", request, index=1, base_name="SD")
    with Image.open(tmp_path / "a") as picture:
        assert picture.format == kind
    found = read_metadata(tmp_path / "a")
    assert found.request == request.model_copy(update={"seed": 6, "count": 1})
    assert found.pairs["Seed"] == "6"
    assert found.texts["parameters"].startswith("猫 in ink\nNegative prompt: blurry\n")


def _random_words() -> str:
    draw = random.Random(1)
    return "".join(chr(draw.randrange(0x4E00, 0x9FFF)) for _ in range(10_000))


@pytest.mark.parametrize("words", ["a cat, " * 1400, "猫と犬" * 3000, _random_words()])
def test_the_longest_prompts_fit_into_a_jpeg(tmp_path: Path, words: str):
    texts = {"prompt": words, "negative": words[::-1], "template": words, "format": "jpeg"}
    request = REQUEST.model_copy(update=texts)
    write_picture(Image.new("RGB", (32, 32), "red"), tmp_path / "a.jpg", request)
    assert read_metadata(tmp_path / "a.jpg").request == request


def test_webp_without_loss(tmp_path: Path):
    noise = Image.effect_noise((32, 32), 90).convert("RGB")
    request = REQUEST.model_copy(update={"format": "webp", "quality": 100})
    write_picture(noise, tmp_path / "a.webp", request)
    with Image.open(tmp_path / "a.webp") as picture:
        assert picture.convert("RGB").tobytes() == noise.tobytes()


PHRASE = st.text("abc xyz,:()[]<>0123456789.\\\"'éß猫", max_size=60)


@given(
    prompt=PHRASE,
    negative=PHRASE,
    seed=st.integers(0, 2**32 - 1),
    steps=st.integers(1, 500),
    cfg=st.floats(0, 50).map(lambda value: round(value, 2)),
    size=st.tuples(st.integers(2, 512), st.integers(2, 512)),
    scheduler=st.sampled_from(["Euler", "Euler a", "DPM++ 2M Karras", "UniPC Exponential", "DDIM"]),
    clip_skip=st.integers(0, 12),
    hires=st.none() | st.builds(HiresChoice, scale=st.sampled_from([1.5, 2.0]), steps=st.integers(0, 50)),
    subseed=st.tuples(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.25])),
)
def test_infotext_round_trips(
    prompt: str, negative: str, seed: int, steps: int, cfg: float, size: tuple[int, int], scheduler: str,
    clip_skip: int, hires: HiresChoice | None, subseed: tuple[int, float],
):  # fmt: skip
    if "<lora:" in prompt:
        return
    request = SampleRequest(
        base="b", prompt=prompt.strip(), negative=negative.strip(), seed=seed, steps=steps, cfg=cfg,
        width=8 * size[0], height=8 * size[1], scheduler=scheduler, clip_skip=clip_skip, hires=hires,
        subseed=subseed[0] if subseed[1] else 0, subseed_strength=subseed[1],
    )  # fmt: skip
    found = parse_a1111(a1111_parameters(request, base_name="a, b: c"))
    again = SampleRequest.model_validate(
        {
            "base": "b", "prompt": found.prompt, "negative": found.negative, "seed": found.seed,
            "steps": found.steps, "cfg": found.cfg, "width": found.width, "height": found.height,
            "scheduler": found.scheduler, **found.more,
        }
    )  # fmt: skip
    skip = request.clip_skip if request.clip_skip > 1 else 0
    assert again == request.model_copy(update={"clip_skip": skip})
    assert found.base_name == "a, b: c"
