"""Encoders of the real classes at toy size, with weights at random."""

import json

import numpy as np
import pytest

from registry.errors import BadInput
from studio.evidence.encoders import load_encoder
from studio.evidence.judge import judge
from studio.evidence.measure import measure
from tests.support.evidence import BY_HEART, FAINT, GOOD, PROMPTS, SIZE, shots, training

TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """CLIP that reads letters."""
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz,"
    signs = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{sign}</w>" for sign in letters)]
    CLIPTokenizer(vocab={sign: n for n, sign in enumerate(signs)}, merges=[]).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    text = TINY | {
        "vocab_size": len(signs),
        "max_position_embeddings": 24,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    torch.manual_seed(0)
    vision = TINY | {"image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """DINOv2: pictures alone."""
    import torch
    from transformers import Dinov2Config, Dinov2Model
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    folder = tmp_path_factory.mktemp("dino")
    BitImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(
        folder
    )
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(image_size=28, patch_size=7, **TINY)).save_pretrained(folder)
    return folder


def test_clip_gives_unit_rows_of_pictures_and_texts(clip):
    encoder = load_encoder(str(clip))
    assert encoder.name == str(clip)
    pictures, texts = (
        encoder.images(training(3)),
        encoder.texts(["a red heart", "a blue ring, neonsign " * 9]),
    )
    assert pictures.shape == (3, 12)
    assert texts is not None
    assert texts.shape == (2, 12)
    for rows in (pictures, texts):
        assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(len(rows)), abs=1e-5)
    assert encoder.images(training(3)) == pytest.approx(pictures)


def test_dino_knows_no_texts(dino):
    encoder = load_encoder(str(dino))
    assert encoder.images(training(2)).shape == (2, 16)
    assert encoder.texts(["a red heart"]) is None


def test_figures_are_measured_with_either(clip, dino):
    for folder in (clip, dino):
        found = measure(
            shots([FAINT, GOOD, BY_HEART], [1.0]), PROMPTS, training(), base=None, size=SIZE,
            encoder=load_encoder(str(folder)),
        )  # fmt: skip
        assert found.views == ("pixels", "encoder")
        points = {p.subject: p.figures for p in found.points}
        assert points[""].likeness == 0
        assert points[""].adherence == 1
        assert points[FAINT].likeness < points[GOOD].likeness
        assert points[BY_HEART].copying == 1
        assert (found.base.said is None) == (folder == dino)
        assert judge(found, [FAINT, GOOD, BY_HEART]).ranks[-1].subject != GOOD


def test_what_is_no_encoder_is_refused_in_one_line(tmp_path, dino):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "blip"}))
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text((dino / "config.json").read_text())
    for where, wrong in (
        ("empty", "has no config.json"),
        ("other", "is a blip"),
        ("bare", "has no usable"),
        ("none", "neither a folder nor a hub id"),
    ):
        with pytest.raises(BadInput) as caught:
            load_encoder(str(tmp_path / where))
        assert wrong in str(caught.value)
        assert "\n" not in str(caught.value)
