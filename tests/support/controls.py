"""Networks that steer a base: real classes at toy size, their zero layers filled, so that they act."""

import inspect
from typing import Any

import numpy as np
import torch
from PIL import Image

UNET_HINT = (4, 8, 8)  # as many halvings as the toy VAE has


def filled(model: Any, seed: int = 0) -> Any:
    """With weights in what training starts from zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if not bool(parameter.any()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def controlnet(unet: Any, seed: int = 0, *, union: bool = False, **config: Any) -> Any:
    """Of a UNet's shape."""
    from diffusers.models.controlnets.controlnet import ControlNetModel
    from diffusers.models.controlnets.controlnet_union import ControlNetUnionModel

    cls: Any = ControlNetUnionModel if union else ControlNetModel
    takes = inspect.signature(cls.__init__).parameters
    values = {key: value for key, value in unet.config.items() if key in takes and not key.startswith("_")}
    values |= {"conditioning_embedding_out_channels": UNET_HINT}
    if union:
        values |= {"num_trans_channel": 32, "num_proj_channel": 32, "num_trans_head": 2,
                   "addition_time_embed_dim": values.get("addition_time_embed_dim") or 8}  # fmt: skip
    torch.manual_seed(seed)
    return filled(cls(**values | config), seed)


def t2i_adapter(seed: int = 0, **config: Any) -> Any:
    """For the toy UNet's two levels."""
    from diffusers.models.adapter import T2IAdapter

    torch.manual_seed(seed)
    values = {"channels": [32, 64], "num_res_blocks": 1, "downscale_factor": 4}
    return filled(T2IAdapter(**values | config), seed)


def sd3_controlnet(seed: int = 0, **config: Any) -> Any:
    """For the toy SD3.5."""
    from diffusers.models.controlnets.controlnet_sd3 import SD3ControlNetModel

    torch.manual_seed(seed)
    values = {
        "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 1,
        "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 96,
        "caption_projection_dim": 32, "pooled_projection_dim": 80, "pos_embed_max_size": 16,
    }  # fmt: skip
    return filled(SD3ControlNetModel(**values | config), seed)


def flux_controlnet(seed: int = 0, **config: Any) -> Any:
    """For the toy FLUX.1 dev; with `conditioning_embedding_channels` it reads pixels, as XLabs' do."""
    from diffusers.models.controlnets.controlnet_flux import FluxControlNetModel

    torch.manual_seed(seed)
    values = {
        "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 48, "pooled_projection_dim": 32,
        "guidance_embeds": True, "axes_dims_rope": (4, 6, 6),
    }  # fmt: skip
    return filled(FluxControlNetModel(**values | config), seed)


def map_picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Something to read, (width, height)."""
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)
