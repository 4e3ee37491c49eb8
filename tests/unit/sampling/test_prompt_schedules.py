"""Prompts that change on the way or are composed, clip skip and embeddings, against plain calls."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import Tensor

from registry.errors import BadInput
from studio.sampling.prompts.encode import PromptEncoder, encode
from studio.sampling.prompts.parse import parse
from studio.sampling.prompts.request_texts import RequestTexts
from studio.sampling.request import SampleRequest
from studio.sampling.schedulers import make_scheduler
from studio.sampling.task import TaskEmbedding
from tests.support.prompts import LAYERS, Find, Plain, at, same, weighted
from trainers.families import FAMILIES
from trainers.guidance import Guided, begin
from trainers.new_tokens import set_words


@pytest.mark.parametrize("family", list(FAMILIES))
def test_prompts_that_change(find: Find, family: str):
    base = find(family)
    texts = {text: base.encode_text([text]) for text in ("a red hat", "a blue hat")}
    switched = encode(base, parse("a [red:blue:0.4] hat"), 10)
    for number in range(10):
        expected = texts["a red hat" if number < 4 else "a blue hat"]
        close = at(switched, number)
        for key in close:
            same(close[key], expected[key])
    assert all(switched.at(n) is switched.at(0) for n in range(4))
    assert all(switched.at(n) is switched.at(4) for n in range(4, 12))
    turns = encode(base, parse("a [red|blue] hat"), 3)
    assert turns.at(0) is turns.at(2)
    same(at(turns, 1)["hidden"], texts["a blue hat"]["hidden"])
    rest = switched.after(3)
    assert [rest.at(n) is switched.at(0) for n in range(7)] == [True] + [False] * 6


def test_equal_texts_are_encoded_once(find: Find, monkeypatch: pytest.MonkeyPatch):
    base, asked = find("sd15"), list[Tensor]()
    forward = base.encode_ids

    def counted_ids(name: str, ids: Tensor, clip_skip: int = 0) -> dict[str, Tensor]:
        asked.append(ids)
        return forward(name, ids, clip_skip)

    monkeypatch.setattr(base, "encode_ids", counted_ids)
    encoder = PromptEncoder(base)
    encoder.pair(parse("a [red|blue] hat AND a red hat"), parse("a blue hat"), 30)
    assert len(asked) == 2
    encoder.pair(parse("a red hat"), parse("b BREAK b"), 30)
    assert len(asked) == 4  # b, and the empty portion


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd35", "flux1"])
def test_and_composes_what_the_denoiser_says(find: Find, family: str):
    base = find(family)
    cond, negative = PromptEncoder(base).pair(parse("red AND blue:-0.5 AND b:0.25"), parse("c"), 1)
    size, scale = (32, 24), 4.0
    generator = torch.Generator().manual_seed(1)
    channels, factor = base.config("vae")["latent_channels"], base.latent_factor
    x = torch.randn(2, channels, size[0] // factor, size[1] // factor, generator=generator)
    scheduler = begin(base, type(base).tiny()["scheduler"], 4, x.shape)
    t = scheduler.timesteps[1]
    with torch.no_grad():
        ours = Guided(base, cond, negative, scale, size).predict(scheduler, x, t, number=0)
        one_by_one = {
            text: Guided(base, base.encode_text([text]), {}, scale if base.guidance_input else 1.0, size)
            .predict(scheduler, x, t) for text in ("red", "blue", "b", "c")
        }  # fmt: skip
    shares = {"red": 1.0, "blue": -0.5, "b": 0.25}
    if base.second_call:
        u = one_by_one["c"]
        expected = u + scale * sum(share * (one_by_one[text] - u) for text, share in shares.items())
    else:
        expected = sum(share * one_by_one[text] for text, share in shares.items()) / 0.75
    assert isinstance(expected, Tensor)
    assert float((ours - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_samplers_of_second_order_visit_two_timesteps_a_step(find: Find):
    base = find("sd15")
    cond, negative = PromptEncoder(base).pair(parse("[red|blue]"), parse("c"), 4)
    guided = Guided(base, cond, negative, 3.0, (32, 32))
    heun, x = make_scheduler("Heun", base.scheduler_config()), torch.zeros(1, 4, 8, 8)
    heun = begin(base, heun, 4, x.shape)
    asked = [
        guided.question(heun, x, t, number).cond["hidden"][1:] for number, t in enumerate(heun.timesteps)
    ]
    red, blue = (base.encode_text([text])["hidden"] for text in ("red", "blue"))
    assert len(asked) == 7
    assert all(torch.equal(one, red if n // 2 % 2 == 0 else blue) for n, one in enumerate(asked))


def test_one_prompt_without_guidance_takes_one_call(find: Find):
    base, sizes = find("sd15"), list[int]()
    cond, negative = PromptEncoder(base).pair(parse("red"), parse("c"), 1)
    both, _ = PromptEncoder(base).pair(parse("red AND blue"), parse("c"), 1)
    handle = base.denoiser.register_forward_pre_hook(lambda _module, args: sizes.append(len(args[0])))
    x = torch.zeros(1, 4, 8, 8)
    scheduler = begin(base, type(base).tiny()["scheduler"], 4, x.shape)
    with torch.no_grad():
        for prompt, scale in ((cond, 1.0), (cond, 3.0), (both, 1.0), (both, 3.0)):
            Guided(base, prompt, negative, scale, (32, 32)).predict(scheduler, x, scheduler.timesteps[0])
    handle.remove()
    assert sizes == [1, 2, 3, 3]


def test_clip_skip(find: Find):
    text = "a red hat"
    base = find("sd15")
    plain = Plain(base)
    for skip in (2, 3, LAYERS):
        hidden, _ = plain.clip(plain.tokens(text), -skip)
        expected = plain.model.final_layer_norm(hidden)
        same(at(encode(base, parse(text), 1, clip_skip=skip))["hidden"], expected.detach())
    for family, last in (("sdxl", None), ("sd35", 80)):
        base = find(family)
        first, second = Plain(base), Plain(base, "_2")
        for skip in (2, LAYERS - 1):
            cond = at(encode(base, parse(text), 1, clip_skip=skip))
            one, two = (p.clip(p.tokens(text), -1 - skip) for p in (first, second))
            same(cond["hidden"][:, :77, :last], torch.cat([one[0], two[0]], dim=-1))
            same(cond["pooled"][:, -two[1].text_embeds.shape[1] :], two[1].text_embeds)  # of the last layer
    for family in FAMILIES:
        base = find(family)
        for skip in (0, 1):
            cond, expected = at(encode(base, parse(text), 1, clip_skip=skip)), base.encode_text([text])
            assert all(torch.equal(cond[key], expected[key]) for key in cond)


@pytest.mark.parametrize(("family", "most"), [("sd15", LAYERS), ("sdxl", LAYERS - 1), ("sd35", LAYERS - 1)])
def test_clip_skip_leaves_a_layer(find: Find, family: str, most: int):
    encode(find(family), parse("a"), 1, clip_skip=most)
    with pytest.raises(BadInput, match=rf"leaves no layer of CLIP\. use at most {most}\."):
        encode(find(family), parse("a"), 1, clip_skip=most + 1)


def vectors(width: int, seed: int, count: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def knowing(plain: Plain, word: str, rows: np.ndarray) -> list[int]:
    """Give a plain encoder a word of several vectors; returns its ids."""
    names = [f"<{word}-{index}>" for index in range(len(rows))]
    plain.tokenizer.add_tokens(names)
    plain.model.resize_token_embeddings(len(plain.tokenizer))
    ids = plain.tokenizer.convert_tokens_to_ids(names)
    with torch.no_grad():
        plain.model.get_input_embeddings().weight[ids] = torch.from_numpy(rows)
    return ids


def request_for(prompt: str, negative: str = "", **changes: Any) -> SampleRequest:
    return SampleRequest(base="b", prompt=prompt, negative=negative, steps=1, width=32, height=32, **changes)


def test_embeddings_of_several_vectors(find: Find, tmp_path: Path):
    base = find("sd15")
    rows = vectors(32, 1)
    save_file({"emb_params": rows}, tmp_path / "zork.safetensors")
    files = [TaskEmbedding(word="zork", path=str(tmp_path / "zork.safetensors"))]
    before = base.encode_text(["a zork hat"])
    texts = RequestTexts(base, request_for("a (zork:1.4) hat, " + "b " * 66 + "Zork"), files)
    cond, _ = texts.of(0)
    plain = Plain(base)
    ids = knowing(plain, "zork", rows)
    head, hat = plain.tokens("a "), plain.tokens(" hat, " + "b " * 66)
    first = head + ids + hat
    assert 72 < len(first) <= 75  # the second one does not fit as a whole
    weights = [1.0] * len(head) + [1.4] * 3 + [1.0] * len(hat)
    expected = [weighted(plain.clip(first)[0], weights), plain.clip(ids)[0]]
    same(at(cond)["hidden"], torch.cat(expected, dim=1))
    assert texts.warnings() == []
    assert torch.equal(base.encode_text(["a zork hat"])["hidden"], before["hidden"])


def test_embeddings_of_two_encoders_beside_words_of_adapters(find: Find, tmp_path: Path):
    base = find("sdxl")
    one, two, other = vectors(32, 2), vectors(48, 3), torch.from_numpy(vectors(32, 4, 1))
    save_file({"clip_l": one, "clip_g": two}, tmp_path / "grue.safetensors")
    files = [TaskEmbedding(word="grue", path=str(tmp_path / "grue.safetensors"))]
    set_words(base, {"zork": {"text_encoder": other}})
    known = base.encode_text(["zork grue"])
    texts = RequestTexts(base, request_for("grue zork", "a grue"), files)
    cond, negative = texts.of(0)
    first, second = Plain(base), Plain(base, "_2")
    grue = knowing(first, "grue", one), knowing(second, "grue", two)
    zork = knowing(first, "zork", other.numpy())
    wide = [first.clip(grue[0] + zork, -2)[0], second.clip(grue[1] + second.tokens("zork"), -2)[0]]
    same(at(cond)["hidden"], torch.cat(wide, dim=-1))
    wide = [first.clip(first.tokens("a") + grue[0], -2)[0], second.clip(second.tokens("a") + grue[1], -2)[0]]
    same(at(negative)["hidden"], torch.cat(wide, dim=-1))
    assert torch.equal(base.encode_text(["zork grue"])["hidden"], known["hidden"])
    set_words(base, {})


def test_embeddings_of_another_base_are_said_and_read_as_words(find: Find, tmp_path: Path):
    save_file({"clip_l": vectors(32, 2), "clip_g": vectors(48, 3)}, tmp_path / "grue.safetensors")
    files = [TaskEmbedding(word="grue", path=str(tmp_path / "grue.safetensors"))]
    base = find("sd15")
    texts = RequestTexts(base, request_for("a grue"), files)
    assert torch.equal(at(texts.of(0)[0])["hidden"], base.encode_text(["a grue"])["hidden"])
    (warning,) = texts.warnings()
    assert warning.startswith("Embedding grue is for another base (vectors of 48 and 32 values, not 32)")


def test_an_empty_negative_prompt_is_what_the_family_says(find: Find):
    base = find("sdxl")
    _, negative = RequestTexts(base, request_for("b " * 100), []).of(0)
    assert at(negative)["hidden"].shape[1] == 154
    assert not at(negative)["hidden"].any()
    _, negative = RequestTexts(base, request_for("b", "c"), []).of(0)
    assert at(negative)["hidden"].any()


def test_what_has_no_effect_is_said(find: Find):
    base = find("flux1")
    said = RequestTexts(base, request_for("b " * 600, "c", clip_skip=2), []).warnings()
    assert [line.split(":")[0] for line in said] == [
        "The negative prompt has no effect", "Clip skip has no effect",
        "The last 689 tokens of the prompt are beyond what the text encoder reads.",
    ]  # fmt: skip
    with pytest.raises(BadInput, match=r"shares that add up to -0\.5"):
        RequestTexts(base, request_for("b AND c:-1.5"), []).of(0)
