"""Bases that make video, sound and 3D: real classes at toy size, saved by their own pipelines."""

from pathlib import Path
from typing import Any

import torch

from trainers.families import FAMILIES, toy

WIDTH = 32


def vision(*, projection: bool) -> Any:
    """A CLIP that looks at pictures of 224 pixels, as the pipeline of SVD takes for granted."""
    from transformers.models.clip.configuration_clip import CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPVisionModel, CLIPVisionModelWithProjection

    cls: Any = CLIPVisionModelWithProjection if projection else CLIPVisionModel
    config = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1, num_attention_heads=2,
        image_size=224, patch_size=56, projection_dim=WIDTH,
    )  # fmt: skip
    return cls(config).eval()


def processor() -> Any:
    """What makes a CLIP's input of a picture, without torchvision."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size=224)


def svd() -> Any:
    """Stable Video Diffusion for 3 frames."""
    from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import AutoencoderKLTemporalDecoder
    from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel
    from diffusers.pipelines.stable_video_diffusion import StableVideoDiffusionPipeline
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

    unet = UNetSpatioTemporalConditionModel(
        sample_size=8, in_channels=8, out_channels=4, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), num_frames=3,
        cross_attention_dim=WIDTH, num_attention_heads=(2, 4), projection_class_embeddings_input_dim=96,
        addition_time_embed_dim=32,
    )  # fmt: skip
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4,
        sample_size=32, layers_per_block=1,
    )  # fmt: skip
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", interpolation_type="linear",
        prediction_type="v_prediction", sigma_min=0.002, sigma_max=700.0, timestep_spacing="leading",
        timestep_type="continuous", use_karras_sigmas=True, steps_offset=1,
    )  # fmt: skip
    return StableVideoDiffusionPipeline(
        vae=vae.eval(), image_encoder=vision(projection=True), unet=unet.eval(), scheduler=scheduler,
        feature_extractor=processor(),
    )  # fmt: skip


def motion_adapter() -> Any:
    """Motion for the toy SD1.5."""
    from diffusers.models.unets.unet_motion_model import MotionAdapter

    return MotionAdapter(
        block_out_channels=(32, 64), motion_layers_per_block=1, motion_num_attention_heads=2,
        motion_norm_num_groups=8, motion_max_seq_length=16, use_motion_mid_block=False,
    )  # fmt: skip


def animatediff() -> Any:
    """AnimateDiff as one folder."""
    from diffusers.pipelines.animatediff import AnimateDiffPipeline

    parts = FAMILIES["sd15"].load_class().tiny(0)
    return AnimateDiffPipeline(**parts, motion_adapter=motion_adapter())


def audioldm2() -> Any:
    """AudioLDM 2, of 16 kHz."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.pipelines.audioldm2 import (
        AudioLDM2Pipeline,
        AudioLDM2ProjectionModel,
        AudioLDM2UNet2DConditionModel,
    )
    from transformers.models.clap.configuration_clap import ClapAudioConfig, ClapConfig, ClapTextConfig
    from transformers.models.clap.feature_extraction_clap import ClapFeatureExtractor
    from transformers.models.clap.modeling_clap import ClapModel
    from transformers.models.gpt2.configuration_gpt2 import GPT2Config
    from transformers.models.gpt2.modeling_gpt2 import GPT2Model
    from transformers.models.speecht5.configuration_speecht5 import SpeechT5HifiGanConfig
    from transformers.models.speecht5.modeling_speecht5 import SpeechT5HifiGan

    tokenizer, tokenizer_2 = roberta_tokenizer(), toy.t5_tokenizer()
    unet = AudioLDM2UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), norm_num_groups=8,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=(8, 16),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16), in_channels=1, out_channels=1, norm_num_groups=8, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    text = ClapTextConfig(
        hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16, projection_dim=8,
        vocab_size=len(tokenizer), max_position_embeddings=80, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    audio = ClapAudioConfig(
        spec_size=8, window_size=4, num_mel_bins=8, depths=[1, 1], num_attention_heads=[1, 1], hidden_size=16,
        projection_dim=8, patch_size=2, patch_stride=2, patch_embed_input_channels=4,
        patch_embeds_hidden_size=8,
    )  # fmt: skip
    clap = ClapModel(ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict(), projection_dim=16))
    gpt2 = GPT2Model(GPT2Config(n_embd=16, n_head=2, n_layer=1, n_ctx=99, n_positions=99, vocab_size=99))
    gpt2.config.max_new_tokens = 8
    vocoder = SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=8, sampling_rate=16000, upsample_initial_channel=16, upsample_rates=[2, 2],
            upsample_kernel_sizes=[4, 4], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3, 5]],
            normalize_before=False, initializer_range=0.3,
        )
    )  # fmt: skip
    projection = AudioLDM2ProjectionModel(
        text_encoder_dim=16, text_encoder_1_dim=WIDTH, langauge_model_dim=16
    )
    return AudioLDM2Pipeline(
        vae=vae.eval(), text_encoder=clap.eval(), text_encoder_2=toy.t5(tokenizer_2), unet=unet.eval(),
        projection_model=projection.eval(), language_model=gpt2.eval(), tokenizer=tokenizer,
        tokenizer_2=tokenizer_2, feature_extractor=ClapFeatureExtractor(feature_size=8, hop_length=240),
        scheduler=toy.diffusion_scheduler(), vocoder=vocoder.eval(),
    )  # fmt: skip


def roberta_tokenizer() -> Any:
    """A RobertaTokenizer over single bytes."""
    from transformers.models.roberta.tokenization_roberta import RobertaTokenizer

    words = list(toy.clip_tokenizer().get_vocab())[:256]
    vocabulary = {
        word: index for index, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *words, "<mask>"])
    }
    made: Any = RobertaTokenizer
    return made(vocab=vocabulary, merges=[], model_max_length=77)


def stable_audio() -> Any:
    """Stable Audio, of 16 kHz stereo, 0.016 s at most."""
    from diffusers.models.autoencoders.autoencoder_oobleck import AutoencoderOobleck
    from diffusers.models.transformers.stable_audio_transformer import StableAudioDiTModel
    from diffusers.pipelines.stable_audio import StableAudioPipeline, StableAudioProjectionModel
    from diffusers.schedulers.scheduling_cosine_dpmsolver_multistep import (
        CosineDPMSolverMultistepScheduler,
    )

    tokenizer = toy.t5_tokenizer()
    transformer = StableAudioDiTModel(
        sample_size=64, in_channels=3, num_layers=1, attention_head_dim=8, num_attention_heads=4,
        num_key_value_attention_heads=2, out_channels=3, cross_attention_dim=WIDTH,
        cross_attention_input_dim=WIDTH, global_states_input_dim=2 * WIDTH, time_proj_dim=8,
    )  # fmt: skip
    vae = AutoencoderOobleck(
        encoder_hidden_size=6, downsampling_ratios=[1, 2, 2], decoder_channels=3, decoder_input_channels=3,
        audio_channels=2, channel_multiples=[2, 4, 4], sampling_rate=16000,
    )  # fmt: skip
    projection = StableAudioProjectionModel(
        text_encoder_dim=WIDTH, conditioning_dim=WIDTH, min_value=0, max_value=512
    )
    return StableAudioPipeline(
        vae=vae.eval(), text_encoder=toy.t5(tokenizer), projection_model=projection.eval(),
        tokenizer=tokenizer, transformer=transformer.eval(),
        scheduler=CosineDPMSolverMultistepScheduler(
            solver_order=2, prediction_type="v_prediction", sigma_data=1.0, sigma_schedule="exponential"
        ),
    )  # fmt: skip


LATENTS, LATENT = (
    32,
    16,
)  # of a thing of Shap-E: rows, one for each row of the renderer's weights, and their width


def prior(**config: Any) -> Any:
    """What Shap-E denoises with."""
    from diffusers.models.transformers.prior_transformer import PriorTransformer

    common: dict[str, Any] = {
        "num_attention_heads": 2, "attention_head_dim": 16, "embedding_dim": LATENT, "num_layers": 1,
        "num_embeddings": LATENTS, "additional_embeddings": 0, "time_embed_act_fn": "gelu",
        "time_embed_dim": 64, "norm_in_type": "layer", "embedding_proj_dim": WIDTH,
        "clip_embed_dim": 2 * LATENT, "added_emb_type": None, "encoder_hid_proj_type": None,
    }  # fmt: skip
    return PriorTransformer(**common | config).eval()


def renderer(inside: int = 1) -> Any:
    """What makes pictures and a mesh of it; `inside` above 0: with a surface, far below: without."""
    from diffusers.pipelines.shap_e.renderer import ShapERenderer

    made = ShapERenderer(
        param_shapes=((8, 93), (8, 8), (8, 8), (8, 8)), d_latent=LATENT, d_hidden=8, n_output=12,
        background=(0.1, 0.1, 0.1),
    )  # fmt: skip
    with torch.no_grad():
        made.mlp.mlp[-1].bias[0] += inside  # nearly everywhere
    for corners in range(256):
        if len(crossed := _crossed(corners)) >= 3:
            made.mesh_decoder.cases[corners, 0] = torch.tensor(crossed[:3])
            made.mesh_decoder.masks[corners, 0] = True
    return made.eval()


def _crossed(corners: int) -> list[int]:
    """Edges of a cell that the surface crosses; a published model brings the whole table of marching cubes.

    Args:
        corners: Bit x + 2 y + 4 z of each corner that is inside.
    """
    inside = [bool(corners >> corner & 1) for corner in range(8)]
    edges = [(a + b, a + b + along) for along, *ab in ((1, 2, 4), (2, 1, 4), (4, 1, 2))
             for b in (0, ab[1]) for a in (0, ab[0])]  # fmt: skip
    return [number for number, (one, other) in enumerate(edges) if inside[one] != inside[other]]


def heun() -> Any:
    """Shap-E's own scheduler: it asks the denoiser twice a step."""
    from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler

    return HeunDiscreteScheduler(
        beta_schedule="exp", num_train_timesteps=1024, prediction_type="sample", use_karras_sigmas=True,
        clip_sample=True, clip_sample_range=1.0,
    )  # fmt: skip


def shap_e() -> Any:
    """Shap-E from words."""
    from diffusers.pipelines.shap_e import ShapEPipeline

    tokenizer = toy.clip_tokenizer()
    return ShapEPipeline(
        prior=prior(), text_encoder=toy.clip(tokenizer, projection=WIDTH), tokenizer=tokenizer,
        scheduler=heun(), shap_e_renderer=renderer(),
    )  # fmt: skip


def shap_e_image() -> Any:
    """Shap-E from a picture; what it makes has no surface."""
    from diffusers.pipelines.shap_e import ShapEImg2ImgPipeline

    return ShapEImg2ImgPipeline(
        prior=prior(embedding_proj_norm_type="layer"), image_encoder=vision(projection=False),
        image_processor=processor(), scheduler=heun(), shap_e_renderer=renderer(-9),
    )  # fmt: skip


TOYS = {
    "svd": svd, "animatediff": animatediff, "audioldm2": audioldm2, "stable-audio": stable_audio,
    "shap-e": shap_e, "shap-e-image": shap_e_image,
}  # fmt: skip


def save_toy(name: str, folder: Path, seed: int = 0) -> Path:
    """A kind of `KINDS`, or "motion", as a folder in diffusers layout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made: Any = motion_adapter() if name == "motion" else TOYS[name]()
    made.save_pretrained(folder)
    return folder
