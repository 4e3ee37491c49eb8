"""The adapter file: loaded by diffusers it draws what the live model draws."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from registry.errors import BadInput
from tests.support.bases import save_base
from trainers.checkpoints import Learning, write_tensors
from trainers.ema import Ema
from trainers.families import FAMILIES
from trainers.families.base import BaseFiles
from trainers.flat import Flat
from trainers.methods import METADATA_KEY, attach, load_tensors
from trainers.preview import sample
from trainers.recipe import AdapterSection, PreviewSection

CPU = torch.device("cpu")
CASES = {
    "alpha equals rank": AdapterSection(rank=4),
    "alpha differs": AdapterSection(rank=4, alpha=1.5),
    "conv": AdapterSection(rank=4, alpha=2.0, conv_rank=2, conv_alpha=6.0),
    "text encoder": AdapterSection(rank=4, alpha=2.0, train_text_encoder=True, text_rank=3, text_alpha=9.0),
    "pattern": AdapterSection(rank=2, alpha=3.0, targets=r".*attn2\.to_[kv]"),
}


@pytest.fixture(scope="module", params=["sd15", "sd21"])
def base(request, tmp_path_factory):
    return request.param, save_base(request.param, tmp_path_factory.mktemp("base") / request.param)


def load(base):
    return FAMILIES[base[0]].load_class()(BaseFiles(str(base[1])), dtype=torch.float32, device=CPU)


def trained(family, section):
    """An adapter with every tensor away from its initial value, as after training."""
    trainables = attach(family, section, seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainables.parameters:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return trainables


def draw(family):
    """Eight deterministic steps at guidance 3."""
    section = PreviewSection(steps=4, cfg=3.0)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    cond, negative = family.encode_text(["a red disc"]), family.encode_text(["blurred"])
    with torch.no_grad():
        latents = sample(family, section, cond, negative, noise, torch.Generator())
        return family.decode_image(latents)


def draw_with_pipeline(pipe):
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    pipe.set_progress_bar_config(disable=True)
    pictures = pipe(
        "a red disc", negative_prompt="blurred", num_inference_steps=4, guidance_scale=3.0, latents=noise,
        output_type="pt", height=32, width=32,
    ).images  # fmt: skip
    return pictures * 2 - 1


def pipeline(base):
    return StableDiffusionPipeline.from_pretrained(base[1], local_files_only=True)


def test_previews_are_the_pipelines_pictures(base):
    torch.testing.assert_close(
        draw(load(base)).clamp(-1, 1), draw_with_pipeline(pipeline(base)), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("case", CASES)
def test_file_draws_in_diffusers_what_the_live_model_draws(case, base, tmp_path):
    family = load(base)
    plain = draw(family)
    trainables = trained(family, CASES[case])
    live = draw(family).clamp(-1, 1)
    flats = [Flat(named) for named in (trainables.denoiser, trainables.text) if named]
    parameters = [flat.parameter for flat in flats]
    learning = Learning(trainables, flats, torch.optim.AdamW(parameters), Ema(parameters, 0))
    assert torch.equal(draw(family).clamp(-1, 1), live)  # flat storage is the same model
    write_tensors(tmp_path / "adapter.safetensors", learning.adapter(), trainables.metadata())

    pipe = pipeline(base)
    pipe.load_lora_weights(str(tmp_path), weight_name="adapter.safetensors")
    loaded = draw_with_pipeline(pipe)
    assert (live - plain.clamp(-1, 1)).abs().max() > 0.01  # the adapter does something
    torch.testing.assert_close(loaded, live, atol=1e-4, rtol=0)

    with trainables.disabled():
        assert torch.equal(draw(family), plain)
    assert torch.equal(draw(family).clamp(-1, 1), live)


def test_keys_and_metadata(base):
    trainables = attach(load(base), CASES["text encoder"], seed=0)
    keys = set(trainables.named)
    assert "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight" in keys
    assert "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight" in keys
    assert {key.split(".")[0] for key in keys} == {"unet", "text_encoder"}
    facts = json.loads(trainables.metadata()[METADATA_KEY])
    assert (facts["unet.r"], facts["unet.lora_alpha"]) == (4, 2)
    assert (facts["text_encoder.r"], facts["text_encoder.lora_alpha"]) == (3, 9)
    assert not any("." in name for name in facts["text_encoder.target_modules"])


def test_ranks_and_precision(base):
    family = FAMILIES[base[0]].load_class()(BaseFiles(str(base[1])), dtype=torch.bfloat16, device=CPU)
    trainables = attach(family, CASES["conv"], seed=0)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in trainables.parameters)
    frozen = [p for p in family.denoiser.parameters() if not p.requires_grad]
    assert {p.dtype for p in frozen} == {torch.bfloat16}
    ranks = {key: p.shape[0] for key, p in trainables.named.items() if "lora_A" in key}
    assert {rank for key, rank in ranks.items() if ".conv" in key} == {2}
    assert {rank for key, rank in ranks.items() if ".conv" not in key} == {4}
    assert any(key.startswith("unet.down_blocks.0.downsamplers.0.conv.") for key in ranks)
    assert not any("conv_in" in key or "conv_out" in key for key in ranks)


def test_initial_weights_follow_the_seed_and_change_nothing(base):
    family = load(base)
    before = draw(family)
    first = {key: p.detach().clone() for key, p in attach(family, CASES["conv"], seed=1).named.items()}
    assert torch.equal(draw(family), before)
    again, other = (attach(load(base), CASES["conv"], seed=seed).named for seed in (1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_pattern_without_a_match_is_refused(base):
    with pytest.raises(BadInput, match=r"adapter\.targets: 'nothing' matches no layer"):
        attach(load(base), AdapterSection(targets="nothing"), seed=0)


def test_tensors_of_other_layers_are_refused(base):
    trainables = attach(load(base), AdapterSection(rank=4), seed=0)
    tensors = {key: p.detach().clone() for key, p in trainables.named.items()}
    load_tensors(trainables, tensors)
    key = next(iter(tensors))
    with pytest.raises(BadInput, match="the recipe makes it"):
        load_tensors(trainables, tensors | {key: torch.zeros(1, 1)})
    del tensors[key]
    with pytest.raises(BadInput, match="has other layers than the recipe"):
        load_tensors(trainables, tensors)


def test_written_file_is_fp32_and_marked(base, tmp_path):
    trainables = attach(load(base), AdapterSection(rank=2), seed=0)
    write_tensors(
        tmp_path / "a.safetensors", {k: p.detach() for k, p in trainables.named.items()}, {"format": "pt"}
    )
    assert {tensor.dtype for tensor in load_file(tmp_path / "a.safetensors").values()} == {torch.float32}
