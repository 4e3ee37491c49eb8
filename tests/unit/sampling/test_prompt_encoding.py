"""What the denoiser reads of a prompt, against plain calls of transformers written out here."""

import itertools

import pytest
import torch
from torch import Tensor

from studio.sampling.prompts.encode import PromptEncoder, encode
from studio.sampling.prompts.parse import parse
from tests.support.prompts import Find, Plain, at, same, weighted
from trainers.families import FAMILIES

PLAIN = [
    "",
    "a red circle",
    " Two  blanks, 16:9 | a/b ",
    "thread; the red start. It's 100% (not)".replace("(", ""),
]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_text_without_syntax_is_encoded_as_ever(find: Find, family: str):
    base = find(family)
    texts = [*PLAIN, "b " * 75] if not base.t5_encoder else [*PLAIN, "b " * 75, "b, c " * 400]
    for text in texts:
        cond, expected = at(encode(base, parse(text), 4)), base.encode_text([text])
        assert cond.keys() == expected.keys()
        assert all(torch.equal(cond[key], expected[key]) for key in cond), text


def test_weights_sd(find: Find):
    for family in ("sd15", "sd21"):
        base = find(family)
        cond = at(encode(base, parse("a (red:1.5) ((hat)) [tree]"), 1))
        plain = Plain(base)
        pieces = [("a ", 1.0), ("red", 1.5), (" ", 1.0), ("hat", 1.1 * 1.1), (" ", 1.0), ("tree", 1 / 1.1)]
        tokens, weights = counted(plain, pieces)
        hidden = plain.clip(tokens)[0]
        same(cond["hidden"], weighted(hidden, weights))
        assert abs(float(cond["hidden"].mean()) - float(hidden.mean())) < 1e-6


def counted(plain: Plain, pieces: list[tuple[str, float]]) -> tuple[list[int], list[float]]:
    """Token ids, and the weight of each."""
    ids = [plain.tokens(text) for text, _ in pieces]
    weights = [weight for each, (_, weight) in zip(ids, pieces, strict=True) for _ in each]
    return list(itertools.chain(*ids)), weights


PIECES = [("a ", 1.0), ("red", 1.7), (" hat", 1.0), (", tree", 0.4)]
WEIGHTED = "a (red:1.7) hat(, tree:0.4)"


def test_weights_sdxl(find: Find):
    base = find("sdxl")
    cond = at(encode(base, parse(WEIGHTED), 1))
    first, second = Plain(base), Plain(base, "_2")
    one = weighted(first.clip(counted(first, PIECES)[0], -2)[0], counted(first, PIECES)[1])
    hidden, said = second.clip(counted(second, PIECES)[0], -2)
    two = weighted(hidden, counted(second, PIECES)[1])
    same(cond["hidden"], torch.cat([one, two], dim=-1))
    same(cond["pooled"], said.text_embeds)  # weights leave it alone


def test_weights_sd35(find: Find):
    base = find("sd35")
    cond = at(encode(base, parse(WEIGHTED), 1))
    clips: list[Tensor] = []
    pooled: list[Tensor] = []
    for number in ("", "_2"):
        plain = Plain(base, number)
        tokens, weights = counted(plain, PIECES)
        hidden, said = plain.clip(tokens, -2)
        clips.append(weighted(hidden, weights))
        pooled.append(said.text_embeds)
    plain = Plain(base, "_3")
    tokens, weights = counted(plain, PIECES)
    t5 = weighted(plain.t5(tokens, 256), weights, start=0)
    clip = torch.nn.functional.pad(torch.cat(clips, dim=-1), (0, t5.shape[-1] - 80))
    same(cond["hidden"], torch.cat([clip, t5], dim=1))
    same(cond["pooled"], torch.cat(pooled, dim=-1))


def test_weights_flux(find: Find):
    base = find("flux1")
    cond = at(encode(base, parse(WEIGHTED), 1))
    clip, t5 = Plain(base), Plain(base, "_2")
    tokens, weights = counted(t5, PIECES)
    same(cond["hidden"], weighted(t5.t5(tokens, 512), weights, start=0))
    same(cond["pooled"], clip.clip(counted(clip, PIECES)[0])[1].pooler_output)


LONG: dict[str, tuple[str, list[str]]] = {
    "at a comma near the end": ("b " * 70 + ", " + "c " * 10, ["b " * 70 + ",", "c " * 10]),
    "at a comma 19 tokens back": ("b " * 55 + ", " + "c " * 30, ["b " * 55 + ",", "c " * 30]),
    "not at one 20 tokens back": ("b " * 54 + ", " + "c " * 30, ["b " * 54 + ", " + "c " * 20, "c " * 10]),
    "without commas": ("b " * 160, ["b " * 75, "b " * 75, "b " * 10]),
    "a comma at the very end": ("b " * 74 + ", " + "c ", ["b " * 74 + ",", "c"]),
    "a comma behind the end": ("b " * 75 + ", " + "c ", ["b " * 75, ", c"]),
    "exactly full": ("b " * 75, ["b " * 75]),
    "twice": ("b " * 70 + ", " + "c " * 72 + ", d d d", ["b " * 70 + ",", "c " * 72 + ",", "d d d"]),
    "two commas": (
        "b " * 60 + ", " + "c " * 8 + ", " + "d " * 9, ["b " * 60 + ", " + "c " * 8 + ",", "d " * 9],
    ),
    "BREAK": ("b c BREAK d", ["b c", "d"]),
    "BREAK after more than a chunk": ("b " * 80 + "BREAK d", ["b " * 75, "b " * 5, "d"]),
    "BREAK first": ("BREAK d", ["", "d"]),
    "two BREAKs": ("b BREAK BREAK d", ["b", "", "d"]),
}  # fmt: skip


@pytest.mark.parametrize("name", list(LONG))
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_long_prompts(find: Find, family: str, name: str):
    text, portions = LONG[name]
    base = find(family)
    cond = at(encode(base, parse(text), 1))
    plains = [Plain(base, number) for number in (("", "_2") if family == "sdxl" else ("",))]
    layer = -2 if family == "sdxl" else None
    expected = torch.cat(
        [torch.cat([p.clip(p.tokens(one), layer)[0] for one in portions], dim=1) for p in plains], dim=-1
    )
    same(cond["hidden"], expected)
    if family == "sdxl":
        same(cond["pooled"], plains[1].clip(plains[1].tokens(portions[0]), -2)[1].text_embeds)


def test_weights_of_long_prompts_restore_each_chunk(find: Find):
    base = find("sd15")
    cond = at(encode(base, parse("b " * 75 + "(c:1.6) d BREAK (e:0.5)"), 1))
    plain = Plain(base)
    expected = [
        plain.clip(plain.tokens("b " * 75))[0],
        weighted(plain.clip(plain.tokens("c d"))[0], [1.6, 1.0]),
        weighted(plain.clip(plain.tokens("e"))[0], [0.5]),
    ]
    same(cond["hidden"], torch.cat(expected, dim=1))


def test_the_shorter_prompt_is_filled_with_the_empty_one(find: Find):
    base = find("sdxl")
    long, short = PromptEncoder(base).pair(parse("b " * 100), parse("c"), 1)
    alone, empty = base.encode_text(["c"]), base.encode_text([""])
    same(at(short)["hidden"], torch.cat([alone["hidden"], empty["hidden"]], dim=1))
    assert torch.equal(at(short)["pooled"], alone["pooled"])
    assert at(long)["hidden"].shape == at(short)["hidden"].shape
    # At steps where both are short nothing is filled up.
    changing, other = PromptEncoder(base).pair(parse(f"[c:{'b ' * 100}:1]"), parse("d"), 2)
    assert [at(side, step)["hidden"].shape[1] for side in (changing, other) for step in (0, 1)] == [
        77,
        154,
    ] * 2
    assert torch.equal(at(changing, 0)["hidden"], alone["hidden"])


@pytest.mark.parametrize("family", ["sd35", "flux1"])
def test_bases_with_a_t5_read_one_portion(find: Find, family: str):
    base = find(family)
    broken = at(encode(base, parse("red BREAK circle"), 1))
    clip, t5 = Plain(base), Plain(base, "_3" if family == "sd35" else "_2")
    tokens, length = t5.tokens("red", "circle"), base.text_length
    same(broken["hidden"][:, -length:], t5.t5(tokens, length))
    text = "b " * 100
    cond = at(encode(base, parse(text), 1))
    expected = clip.clip(clip.tokens(text)[:75])[1]
    if family == "sd35":
        same(cond["pooled"][:, :32], expected.text_embeds)
        assert cond["hidden"].shape[1] == 77 + 256
    else:
        same(cond["pooled"], expected.pooler_output)
    encoder, longer = PromptEncoder(base), "b " * 300
    cut = len(t5.tokens(longer)) - (length - 1)
    assert encoder.cut(parse(longer), 1) == base.tokens_cut(longer) == cut > 0
    assert encoder.cut(parse(f"[b:{longer}:1]"), 2) == cut
    assert encoder.cut(parse(text), 1) == 0
    assert PromptEncoder(find("sdxl")).cut(parse("b " * 900), 1) == 0
