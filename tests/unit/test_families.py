"""The family contract over every family, with real classes at toy size, against diffusers' own pipelines."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline
from torch import nn

from registry.errors import BadInput
from tests.support.bases import save_base
from trainers.families import FAMILIES
from trainers.families.base import BaseFiles, Use
from trainers.plan import Geometry
from trainers.preview import sample
from trainers.recipe import AdapterSection, ObjectiveSection, PreviewSection

CPU = torch.device("cpu")
CAPTIONS = ["a red star", "", "ein Haus"]
SIZES = [Geometry((600, 800), (0, 12), (32, 24)), Geometry((100, 90), (3, 0), (32, 24))]
FLOW = [name for name, info in FAMILIES.items() if info.flow]


@pytest.fixture(params=sorted(FAMILIES), scope="module")
def base(request, tmp_path_factory):
    return request.param, save_base(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def pipe(base):
    return load(base).pipeline_class().from_pretrained(base[1], local_files_only=True)


def load(base: tuple[str, Path], **options):
    cls = FAMILIES[base[0]].load_class()
    return cls(BaseFiles(str(base[1])), **{"dtype": torch.float32, "device": CPU} | options)


def encoded_by(name, pipe, captions):
    """What the pipeline gives to its denoiser."""
    if name == "flux1":
        hidden, pooled, _ = pipe.encode_prompt(captions, device=CPU)
        return {"hidden": hidden, "pooled": pooled}
    prompts = (captions, captions, captions)[: len(FAMILIES[name].text_encoders)]
    said = pipe.encode_prompt(
        *prompts, device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return {"hidden": said[0]} | ({"pooled": said[2]} if len(said) == 4 else {})


def denoised_by(name, pipe, x_t, t, cond):
    """One call of the pipeline's denoiser, prepared as its __call__ does."""
    if name == "flux1":
        height, width = x_t.shape[-2:]
        said = pipe.transformer(
            hidden_states=pipe._pack_latents(x_t, *x_t.shape),
            timestep=t,
            guidance=torch.full((len(x_t),), 3.5),
            pooled_projections=cond["pooled"],
            encoder_hidden_states=cond["hidden"],
            txt_ids=torch.zeros(cond["hidden"].shape[1], 3),
            img_ids=pipe._prepare_latent_image_ids(len(x_t), height // 2, width // 2, CPU, torch.float32),
        ).sample
        return pipe._unpack_latents(said, height * 4, width * 4, vae_scale_factor=4)
    if name == "sd35":
        return pipe.transformer(
            hidden_states=x_t,
            timestep=t * 1000,
            encoder_hidden_states=cond["hidden"],
            pooled_projections=cond["pooled"],
        ).sample
    if name == "sdxl":
        ids = [
            pipe._get_add_time_ids(
                g.original, g.crop_origin, g.target, torch.float32, cond["pooled"].shape[-1]
            )
            for g in SIZES
        ]
        added = {"text_embeds": cond["pooled"], "time_ids": torch.cat(ids)}
        return pipe.unet(x_t, t, cond["hidden"], added_cond_kwargs=added).sample
    return pipe.unet(x_t, t, cond["hidden"]).sample


def times(name):
    return torch.tensor([0.03, 0.9]) if FAMILIES[name].flow else torch.tensor([3, 900])


@torch.no_grad()
def test_text_encoding_equals_the_pipeline(base, pipe):
    family, expected = load(base), encoded_by(base[0], pipe, CAPTIONS)
    found = family.encode_text(CAPTIONS)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    tokens = family.tokenize(CAPTIONS)
    assert len(tokens) == len(family.text_encoder_names)
    assert tokens["input_ids"].shape == (3, 77)
    live = family.conditioning(tokens)
    assert all(torch.equal(live[key], expected[key]) for key in expected)
    assert family.conditioning(found) is found


@torch.no_grad()
def test_half_encoded_captions_end_as_the_same_conditioning(base):
    """Trained encoders get tokens, the frozen ones were asked before."""
    family = load(base)
    whole = family.encode_text(CAPTIONS)
    live = family.clip_encoders
    half = family.encode_text(CAPTIONS, live)
    assert {key for key in half if "." not in key} == {
        name.replace("text_encoder", "input_ids") for name in live
    }
    assert all(len(value) == len(CAPTIONS) for value in half.values())
    frozen = [name for name in family.text_encoder_names if name not in live]
    family.free(*family.text_encoder_names)
    done = family.conditioning(half)
    assert not any(name in family._loaded for name in frozen)
    assert all(torch.equal(done[key], whole[key]) for key in whole)


def test_latents_are_the_vaes_posterior_scaled(base):
    family = load(base)
    pixels = torch.rand(2, 3, 32, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = family.encode_image(pixels)
    vae = family.part("vae")
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
    with torch.no_grad():
        encoded = vae.encoder(pixels)
        moments = encoded if vae.quant_conv is None else vae.quant_conv(encoded)
    expected_mean, log_variance = moments.chunk(2, dim=1)
    torch.testing.assert_close(mean, (expected_mean - shift) * scale)
    torch.testing.assert_close(std, (log_variance.clamp(-30, 20) / 2).exp() * scale)
    assert mean.shape == (2, 4, 32 // family.latent_factor, 24 // family.latent_factor)
    with torch.no_grad():  # as every pipeline's __call__ ends
        expected = vae.decode(mean / scale + shift).sample
    torch.testing.assert_close(family.decode_image(mean), expected)
    assert expected.shape == pixels.shape


@torch.no_grad()
def test_prediction_is_one_call_of_the_denoiser(base, pipe):
    family = load(base, use=Use(guidance=3.5))
    x_t, t = torch.randn(2, 4, 8, 6), times(base[0])
    cond = family.encode_text(["a", "b"])
    expected = denoised_by(base[0], pipe, x_t, t, cond)
    found = family.predict(x_t, t, cond, SIZES)
    assert torch.equal(found, expected)
    assert found.shape == x_t.shape
    assert family.side_multiple == (8 if FAMILIES[base[0]].flow else 4)


@torch.no_grad()
def test_half_precision_everywhere_but_in_the_vae(base):
    family = load(base, dtype=torch.bfloat16)
    cond = family.encode_text(["a", "b"])
    assert {value.dtype for value in cond.values()} == {torch.bfloat16}
    found = family.predict(torch.randn(2, 4, 8, 6), times(base[0]), cond, SIZES)
    assert found.dtype == torch.bfloat16
    assert found.isfinite().all()
    mean, std = family.encode_image(torch.rand(1, 3, 32, 32))
    assert (mean.dtype, std.dtype, family.part("vae").dtype) == (torch.float32,) * 3


def test_table_says_what_the_class_has(base):
    info, cls = FAMILIES[base[0]], FAMILIES[base[0]].load_class()
    assert info.name == cls.name
    assert info.denoiser == cls.denoiser_name
    assert info.denoiser_class == cls.parts[cls.denoiser_name].class_name
    assert info.text_encoders == cls.text_encoder_names
    assert set(info.tokenizers) == {name for name in cls.parts if name.startswith("tokenizer")}
    assert info.bucket_multiple == cls.bucket_multiple
    assert info.guidance_input == load(base).guidance_input
    assert info.pipeline == cls.pipeline_class().__name__


def test_objective_follows_the_scheduler(base):
    objective = load(base).make_objective(ObjectiveSection(timestep_max=500))
    if FAMILIES[base[0]].flow:
        assert (objective.law, objective.bounds) == ("logit_normal", (0.0, 0.5))
        return
    assert objective.prediction == ("v_prediction" if base[0] == "sd21" else "epsilon")
    forced = load(base).make_objective(
        ObjectiveSection(prediction="epsilon", snr_gamma=5.0, timestep_max=500)
    )
    assert (forced.prediction, forced.snr_gamma, forced.timesteps) == ("epsilon", 5.0, (0, 500))


FOREIGN = {
    False: {"shift": "static", "flow_weighting": "cosmap", "guidance": 2.0},
    True: {"snr_gamma": 5.0, "noise_offset": 0.1, "prediction": "epsilon"},
}


def test_fields_of_another_kind_of_training_are_refused(base):
    for name, value in FOREIGN[FAMILIES[base[0]].flow].items():
        with pytest.raises(BadInput, match=rf"objective\.{name}: means nothing") as error:
            load(base).make_objective(ObjectiveSection.model_validate({name: value}))
        assert "\n" not in str(error.value)


def test_guidance_is_for_bases_that_take_it(tmp_path):
    base = "flux1", save_base("flux1", tmp_path / "base")
    assert load(base).make_objective(ObjectiveSection(guidance=3.5)) is not None
    edit(base[1] / "transformer" / "config.json", guidance_embeds=False)  # as in schnell
    schnell = load(base)
    assert (schnell.guidance_input, schnell.text_length) == (False, 256)
    with pytest.raises(BadInput, match="is an input that this base does not have"):
        schnell.make_objective(ObjectiveSection(guidance=3.5))


@pytest.mark.parametrize("name", FLOW)
@torch.no_grad()
def test_t5_reads_as_many_tokens_as_the_recipe_says(name, tmp_path):
    base = name, save_base(name, tmp_path / "base")
    family, usual = load(base, use=Use(text_length=32)), load(base)
    assert usual.text_length == {"sd35": 256, "flux1": 512}[name]
    assert usual.cache_facts() != family.cache_facts()
    long = usual.encode_text(["a"])["hidden"].shape[1]
    assert family.encode_text(["a"])["hidden"].shape[1] == long - usual.text_length + 32
    assert family.tokens_cut("aeiou " * 30) > usual.tokens_cut("aeiou " * 30) == 0


@torch.no_grad()
def test_zeros_stand_for_a_t5_that_is_not_there(tmp_path):
    base = "sd35", save_base("sd35", tmp_path / "base")
    for name in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(base[1] / name)
    edit(base[1] / "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])
    family = load(base)
    pipe = StableDiffusion3Pipeline.from_pretrained(
        base[1], text_encoder_3=None, tokenizer_3=None, local_files_only=True
    )
    found, expected = family.encode_text(CAPTIONS), encoded_by("sd35", pipe, CAPTIONS)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert found["hidden"][:, 77:].abs().max() == 0
    assert family.text_encoder_names == ("text_encoder", "text_encoder_2")
    assert family.tokens_cut("red " * 80) == 5
    with pytest.raises(BadInput, match="this base has no T5"):
        family.trained_encoders(AdapterSection(train_t5=True))


def test_previews_are_the_pipelines_pictures(base, pipe):
    """Eight calls of the denoiser, guidance, the family's sampler and its VAE."""
    family, section = load(base), PreviewSection(steps=4, cfg=3.0)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    cond, negative = family.encode_text(["a red disc"]), family.encode_text(["blurred"])
    with torch.no_grad():
        latents = sample(family, section, cond, negative, noise, torch.Generator())
        found = family.decode_image(latents).clamp(-1, 1)
    pipe.set_progress_bar_config(disable=True)
    flux = base[0] == "flux1"
    expected = pipe(
        "a red disc",
        num_inference_steps=4,
        guidance_scale=3.0,
        latents=pipe._pack_latents(noise, *noise.shape) if flux else noise,
        output_type="pt",
        height=32,
        width=32,
        **({} if flux else {"negative_prompt": "blurred"}),
    ).images
    torch.testing.assert_close(found, expected * 2 - 1, atol=1e-4, rtol=0)


def test_samplers_get_the_pipelines_schedule(tmp_path):
    """Noise levels that FluxPipeline hands to the scheduler, and mu of the shift."""
    base = "flux1", save_base("flux1", tmp_path / "base")
    pipe = FluxPipeline.from_pretrained(base[1], local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    pipe("a", height=32, width=32, num_inference_steps=3, output_type="latent")
    expected = pipe.scheduler.timesteps.clone()
    scheduler = pipe.scheduler
    scheduler.set_timesteps(3, **load(base).sampler_options(3, (1, 4, 8, 8)))
    assert torch.equal(scheduler.timesteps, expected)
    assert torch.equal(load(base).sampler_time(expected), expected / 1000)


def test_adapters_go_where_they_should(base):
    """Names of adapted layers, counted by hand."""
    from trainers.methods import attach

    family = load(base)
    keys = {key.rpartition(".lora_")[0] for key in attach(family, AdapterSection(rank=2), 0).denoiser}
    layers = {key.partition(".")[2] for key in keys}
    double = {"to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"}
    if base[0] == "flux1":
        block = {f"transformer_blocks.0.attn.{name}" for name in double}
        block |= {
            f"transformer_blocks.0.{ff}.net.{n}" for ff in ("ff", "ff_context") for n in ("0.proj", "2")
        }
        single = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out")
        assert layers == block | {f"single_transformer_blocks.{n}.{s}" for n in (0, 1) for s in single}
    elif base[0] == "sd35":
        assert not any("norm" in name or name == "proj_out" or "embed" in name for name in layers)
        assert {f"transformer_blocks.0.attn.{name}" for name in double} <= layers
        assert {
            f"transformer_blocks.0.attn2.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")
        } <= layers
        assert "transformer_blocks.0.ff_context.net.2" in layers
        assert "transformer_blocks.1.ff.net.0.proj" in layers
        assert len(layers) == 8 + 4 + 4 + (8 - 1) + 2  # the last block gives no text on
    else:
        assert len(layers) == 4 * (2 * 4 + 2 + 2)  # blocks of two attentions, an MLP, proj_in and proj_out
    if FAMILIES[base[0]].flow:
        with pytest.raises(BadInput, match=r"adapter\.conv_rank: is set, but"):
            attach(load(base), AdapterSection(conv_rank=2), 0)


def test_text_encoders_learn_as_the_recipe_says(base):
    from trainers.methods import attach

    family = load(base)
    keys = attach(family, AdapterSection(rank=2, train_text_encoder=True), 0).text
    assert {key.split(".")[0] for key in keys} == set(family.clip_encoders)
    assert all(key.split(".")[1] == "text_model" for key in keys)
    assert {key.rpartition(".lora_")[0].rpartition(".")[2] for key in keys} == set(family.text_targets)
    if not family.t5_encoder:
        with pytest.raises(BadInput, match=r"adapter\.train_t5: is on, but this base has no T5"):
            family.trained_encoders(AdapterSection(train_t5=True))
        return
    other = load(base)
    keys = attach(other, AdapterSection(rank=2, train_t5=True), 0).text
    assert all(key.startswith(f"{other.t5_encoder}.encoder.block.") for key in keys)
    assert len(keys) == 2 * 2 * (4 + 3)  # A and B, two layers, attention and gated MLP
    for layer in other.part(other.t5_encoder).train().modules():
        assert not isinstance(layer, nn.Dropout) or layer.p == 0


def test_tokens_beyond_the_encoder_are_counted(base):
    family = load(base)
    longest = family.length_of(family.text_encoder_names[-1])
    cut = family.tokens_cut("red " * longest)
    assert family.tokens_cut("red") == 0
    assert cut > 0
    ids = family.part(family.text_encoder_names[-1].replace("text_encoder", "tokenizer"))("red " * longest)
    assert cut == len(ids.input_ids) - longest


def test_parts_load_when_needed_and_can_be_freed(base):
    family = load(base)
    family.encode_text(["a"])
    text = {*family.text_encoder_names, *FAMILIES[base[0]].tokenizers}
    assert set(family._loaded) == text
    family.free(*family.text_encoder_names, "vae")
    assert set(family._loaded) == set(FAMILIES[base[0]].tokenizers)
    assert not any(parameter.requires_grad for parameter in family.denoiser.parameters())


def test_sdxl_that_predicts_v_to_zero_signal(tmp_path):
    folder = save_base("sdxl", tmp_path / "base")
    edit(
        folder / "scheduler" / "scheduler_config.json",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
    )
    objective = load(("sdxl", folder)).make_objective(ObjectiveSection())
    assert objective.prediction == "v_prediction"
    assert objective.alphas_cumprod[-1] < 1e-6


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
