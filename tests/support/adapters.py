"""Adapters with known weights, as trained models and as files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from registry.formats.internal import AdapterForm, LoraFactors
from registry.formats.load import load_adapter
from registry.records import Adapter
from studio.workspace import Workspace

# Every kind of module of SD1.5: linear and convolution, attention and the rest, both components.
UNET = {
    "unet.conv_in": (32, 4, 3, 3),
    "unet.time_embedding.linear_1": (128, 32),
    "unet.down_blocks.0.attentions.0.proj_in": (32, 32, 1, 1),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (32, 32),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": (32, 768),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0": (32, 32),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj": (256, 32),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2": (32, 128),
    "unet.down_blocks.0.downsamplers.0.conv": (32, 32, 3, 3),
    "unet.mid_block.resnets.1.conv2": (64, 64, 3, 3),
    "unet.mid_block.resnets.0.time_emb_proj": (64, 128),
    "unet.up_blocks.1.resnets.2.conv_shortcut": (32, 96, 1, 1),
    "unet.up_blocks.0.upsamplers.0.conv": (64, 64, 3, 3),
}
TEXT = {
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (32, 32),
    "text_encoder.text_model.encoder.layers.1.self_attn.out_proj": (32, 32),
    "text_encoder.text_model.encoder.layers.11.mlp.fc1": (64, 32),
}


def make_form(
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    *,
    rank: int = 4,
    conv_rank: int = 2,
    alpha: float = 1.0,
    conv_alpha: float = 1.0,
    family: str = "sd15",
    seed: int = 0,
) -> AdapterForm:
    """Random factors for modules of the given weight shapes; alpha differs from rank."""
    random = np.random.default_rng(seed)
    modules: dict[str, LoraFactors] = {}
    for name, (rows, *inside) in (UNET | TEXT if shapes is None else shapes).items():
        conv = len(inside) == 3 and inside[1] == 3
        r = conv_rank if conv else rank
        down = random.normal(size=(r, *inside)).astype(np.float32) / 8
        up = random.normal(size=(rows, r, *[1] * (len(inside) - 1))).astype(np.float32) / 8
        modules[name] = LoraFactors(down, up, conv_alpha if conv else alpha)
    return AdapterForm(family, modules)


def write_run_file(form: AdapterForm, path: Path, dtype: Any = np.float32, **metadata: str) -> Path:
    """The file that a trainer leaves: PEFT names, strengths in `lora_adapter_metadata`."""
    config: dict[str, Any] = {}
    tensors: dict[str, np.ndarray] = {}
    for component in form.components:
        modules = form.of(component)
        first = next(iter(modules.values()))
        paths = {name.removeprefix(f"{component}."): item for name, item in modules.items()}
        config |= {
            f"{component}.r": first.rank,
            f"{component}.lora_alpha": first.alpha,
            f"{component}.rank_pattern": {p: f.rank for p, f in paths.items() if f.rank != first.rank},
            f"{component}.alpha_pattern": {p: f.alpha for p, f in paths.items() if f.alpha != first.alpha},
            f"{component}.target_modules": sorted({p.rsplit(".", 1)[-1] for p in paths}),
        }
        for name, factors in modules.items():
            tensors[f"{name}.lora_A.weight"] = factors.down.astype(dtype)
            tensors[f"{name}.lora_B.weight"] = factors.up.astype(dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"format": "pt", "lora_adapter_metadata": json.dumps(config), **metadata})
    return path


def form_of(ws: Workspace, record: Adapter) -> AdapterForm:
    """What is in the file of a registered adapter."""
    return load_adapter(ws.resolve(record.path), record.family)[0]


def files(ws: Workspace) -> list[str]:
    """Names of the files in the workspace's folder of adapters."""
    return sorted(path.name for path in (ws.home / "adapters").iterdir())
