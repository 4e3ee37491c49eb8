"""The grammar of block weights, and the names of blocks."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import BadInput
from registry.formats.operations.blocks import block_of, groups_of
from registry.formats.operations.strength import make_strength, split_blocks

UNET = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"  # IN04
BLOCKS = [
    ("sd15", UNET, "IN04"),
    ("sd15", "unet.conv_in", "IN00"),
    ("sd15", "unet.down_blocks.0.downsamplers.0.conv", "IN03"),
    ("sd15", "unet.mid_block.attentions.0.proj_in", "MID"),
    ("sd15", "unet.up_blocks.1.attentions.0.proj_in", "OUT03"),
    ("sd15", "unet.up_blocks.3.resnets.2.conv1", "OUT11"),
    ("sd15", "unet.time_embedding.linear_1", "REST"),
    ("sd15", "text_encoder.text_model.encoder.layers.7.mlp.fc1", "TE1.07"),
    ("sdxl", "unet.down_blocks.2.attentions.1.transformer_blocks.9.ff.net.2", "IN08"),
    ("sdxl", "unet.up_blocks.0.attentions.2.transformer_blocks.9.ff.net.2", "OUT02"),
    ("sdxl", "text_encoder_2.text_model.encoder.layers.31.self_attn.q_proj", "TE2.31"),
    ("sd35", "transformer.transformer_blocks.23.attn.to_q", "JOINT23"),
    ("sd35", "text_encoder_3.encoder.block.3.layer.0.SelfAttention.q", "TE3.03"),
    ("flux1", "transformer.transformer_blocks.18.attn.add_q_proj", "DOUBLE18"),
    ("flux1", "transformer.single_transformer_blocks.37.proj_mlp", "SINGLE37"),
    ("flux1", "transformer.x_embedder", "REST"),
]


@pytest.mark.parametrize(("family", "module", "label"), BLOCKS)
def test_blocks_are_named_as_published(family, module, label):
    assert block_of(family, module).label == label
    group = label.rstrip("0123456789.")
    assert group == "REST" or group[:2] == "TE" or group in groups_of(family)


@pytest.mark.parametrize(
    ("blocks", "weight"),
    [
        ("", 0.8),
        ("IN04=0.5", 0.4),
        ("in4=0.5", 0.4),
        ("IN=0.5", 0.4),
        ("DOWN=0.5", 0.4),
        ("IN03-05=0.5", 0.4),
        ("IN03-IN05=0.5", 0.4),
        ("IN05-11=0.5", 0.8),
        ("OUT=0,MID=0,TE=0", 0.8),
        ("IN=0, IN04=0.5", 0.4),
        ("IN04=0.5,IN=0", 0.0),
        ("*attn2*=-1", -0.8),
        ("*ATTN2.to_k=2", 1.6),
        ("1,1,1,2,1,1,1,1,1,1,1,1,1,1,1,1,1", 1.6),
        ("1," * 4 + "1,2" + ",1" * 20, 1.6),
    ],
)
def test_the_last_that_fits_a_block_counts(blocks, weight):
    assert make_strength(0.8, None, blocks).of("sd15", UNET) == pytest.approx(weight)


def test_lists_begin_with_the_text_encoder():
    strength = make_strength(1, 0.5, "0.2" + ",1" * 11)
    module = "text_encoder_2.text_model.encoder.layers.3.self_attn.q_proj"
    assert strength.of("sdxl", module) == pytest.approx(0.1)
    assert make_strength(1, None, "BASE=0").of("sdxl", module) == 0
    assert make_strength(1, None, "TE1=0").of("sdxl", module) == 1
    assert make_strength(1, None, "TE2.03=0").of("sdxl", module) == 0


@pytest.mark.parametrize(
    ("blocks", "wrong"),
    [
        ("IN04", "are a list of 1, known are lists of 12, 17, 20, 26"),
        ("1,2,3", "are a list of 3"),
        ("IN04=", "is not NAME=FACTOR"),
        ("IN04=x", "is not NAME=FACTOR"),
        ("IN04=nan", "is not NAME=FACTOR"),
        ("IN04=1e9", "is not NAME=FACTOR"),
        ("IN04=1,2", "is not NAME=FACTOR"),
        ("HEAD=1", "block 'HEAD': is no block"),
        ("TE4=1", "is a layer of no text encoder"),
        ("IN-05=1", "is a range without its start"),
        ("IN05-03=1", "ends before it starts"),
        ("IN05-OUT07=1", "is no block"),
        ("(a+)+$=1", "is no block"),
        ("=1", "is no block"),
        (",".join(["IN=1"] * 201), "have 201 entries"),
    ],
)
def test_what_is_not_in_the_grammar_is_refused(blocks, wrong):
    with pytest.raises(BadInput, match=wrong):
        make_strength(1, None, blocks)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 101, -1e9])
def test_weights_are_numbers_in_reason(weight):
    with pytest.raises(BadInput, match="is not between -100 and 100"):
        make_strength(weight)


def test_brackets_are_split_off():
    assert split_blocks("ink:0.8[MID=0]") == ("ink:0.8", "MID=0")
    assert split_blocks("ink [2]:0.8[MID=0]") == ("ink [2]:0.8", "MID=0")
    assert split_blocks("ink:0.8") == ("ink:0.8", "")


@given(st.text(max_size=60))
def test_any_text_is_taken_or_refused(text):
    with suppress(BadInput):
        make_strength(1, None, text).of("sd15", UNET)
