"""Tiny captioners of the real classes, with weights at random, as folders."""

import csv
import json
from pathlib import Path
from typing import Any

import torch

TAGS = (("general", 9), ("sensitive", 9), ("long_hair", 0), ("^_^", 0), ("red_eyes", 0), ("miku_(singer)", 4))


def blip(folder: Path) -> Path:
    """BLIP with 32-pixel pictures and 15 words."""
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "[DEC]",
        "[ENC]",
        "a",
        "red",
        "green",
        "cat",
        "dog",
        "photo",
        "of",
        "##s",
    ]
    text: dict[str, Any] = {
        "vocab_size": len(words), "hidden_size": 16, "encoder_hidden_size": 16, "intermediate_size": 32,
        "projection_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64,
        "bos_token_id": 5, "eos_token_id": 3, "pad_token_id": 0, "sep_token_id": 3,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    torch.manual_seed(0)
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=8)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


def florence(folder: Path) -> Path:
    """Florence-2 with 32-pixel pictures and a tokenizer of single letters."""
    from transformers import (
        BartTokenizer,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    signs = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<image>", *"abcdefghijklmnopqrstuvwxyzWD.?Ġ"]
    tokenizer = BartTokenizer(
        vocab={sign: number for number, sign in enumerate(signs)},
        merges=[],
        extra_special_tokens={"image_token": "<image>"},
    )
    side = {"height": 32, "width": 32}
    images = CLIPImageProcessorPil(size=side, crop_size=side, do_center_crop=False, image_seq_length=17)
    torch.manual_seed(0)
    config = Florence2Config(
        vision_config={
            "depths": [1, 1], "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1],
            "patch_prenorm": [False, True], "embed_dim": [8, 16], "num_heads": [2, 2], "num_groups": [2, 2],
            "window_size": 4, "projection_dim": 16,
        },
        text_config={
            "model_type": "bart", "vocab_size": len(tokenizer), "d_model": 16, "encoder_layers": 1,
            "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 256,
            "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    Florence2ForConditionalGeneration(config).save_pretrained(folder)
    Florence2Processor(images, tokenizer).save_pretrained(folder)
    return folder


def qwen(folder: Path, kind: str = "qwen2_5_vl") -> Path:
    """Qwen2.5-VL (or 2) with a tokenizer of bytes."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2Tokenizer,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
    )
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
               "<|image_pad|>", "<|video_pad|>"]  # fmt: skip
    signs = [*special, *map(chr, range(33, 127)), "Ġ", "Ċ"]
    tokenizer = Qwen2Tokenizer(
        vocab={sign: number for number, sign in enumerate(signs)},
        merges=[],
        additional_special_tokens=special[1:],
    )
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
        "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    ids = {
        "image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 3, "vision_end_token_id": 4,
    }  # fmt: skip
    torch.manual_seed(0)
    if kind == "qwen2_vl":
        vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2}
        Qwen2VLForConditionalGeneration(
            Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
        ).save_pretrained(folder)
    else:
        vision = {
            "depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 16,
            "fullatt_block_indexes": [0],
        }  # fmt: skip
        Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
        ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=28 * 28 * 16).save_pretrained(folder)
    return folder


def tagger(folder: Path) -> Path:
    """A tagger in transformers' layout: SwinV2 with six tags."""
    from transformers import Swinv2Config, Swinv2ForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    config = Swinv2Config(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4,
        num_labels=len(TAGS),
    )  # fmt: skip
    Swinv2ForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    _write_tags(folder)
    return folder


def timm_tagger(folder: Path, architecture: str = "vit_tiny_patch16_224") -> Path:
    """A tagger as SmilingWolf publishes them: a ViT in timm's layout, without class token."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw) * 0.1

    width, side, labels = 64, 32, len(TAGS)
    weights = {
        "pos_embed": rand(1, (side // 16) ** 2, width),
        "patch_embed.proj.weight": rand(width, 3, 16, 16),
    }
    shapes = {
        "patch_embed.proj.weight": (width, 3, 16, 16), "patch_embed.proj.bias": (width,),
        "norm.weight": (width,), "norm.bias": (width,),
        "head.weight": (labels, width), "head.bias": (labels,),
    }  # fmt: skip
    for block in range(2):
        for part, shape in {
            "norm1": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width), "norm2": (width,),
            "mlp.fc1": (2 * width, width), "mlp.fc2": (width, 2 * width),
        }.items():  # fmt: skip
            shapes[f"blocks.{block}.{part}.weight"] = shape
            shapes[f"blocks.{block}.{part}.bias"] = shape[:1]
    weights |= {key: rand(*shape) for key, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors")
    config = {
        "architecture": architecture,
        "num_classes": labels,
        "global_pool": "avg",
        "model_args": {"img_size": side, "class_token": False, "fc_norm": False, "act_layer": "gelu_tanh"},
        "pretrained_cfg": {"input_size": [3, side, side], "mean": [0.5] * 3, "std": [0.5] * 3},
    }
    (folder / "config.json").write_text(json.dumps(config))
    _write_tags(folder)
    return folder


def _write_tags(folder: Path) -> None:
    with (folder / "selected_tags.csv").open("w", newline="") as lines:
        rows = csv.writer(lines)
        rows.writerow(["tag_id", "name", "category", "count"])
        rows.writerows((number, name, category, 1) for number, (name, category) in enumerate(TAGS))
