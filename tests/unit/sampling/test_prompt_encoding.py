"""What the denoiser reads of a prompt, against plain calls of transformers written out here."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import Tensor

from registry.errors import BadInput
from studio.sampling.prompts.encode import PromptEncoder, Schedule, encode
from studio.sampling.prompts.parse import parse
from studio.sampling.prompts.request_texts import RequestTexts
from studio.sampling.request import SampleRequest
from studio.sampling.schedulers import make_scheduler
from studio.sampling.task import TaskEmbedding
from tests.support.bases import save_parts
from trainers.families import FAMILIES, toy
from trainers.families.base import BaseFiles
from trainers.families.common import TextToImage
from trainers.guidance import SHARE, Guided, begin
from trainers.new_tokens import set_words

LAYERS = 4  # of CLIP: two are too few to skip some
WIDE = {"hidden_act": "gelu", "width": 48}
Find = Callable[[str], TextToImage]


def with_layers(family: str) -> dict[str, Any]:
    """A toy base whose text encoders have `LAYERS` layers."""
    parts = FAMILIES[family].load_class().tiny(0)
    more: dict[str, dict[str, Any]] = {
        "sd15": {"text_encoder": {}},
        "sd21": {"text_encoder": {}},
        "sdxl": {"text_encoder": {}, "text_encoder_2": WIDE | {"projection": 24}},
        "sd35": {"text_encoder": {"projection": 32}, "text_encoder_2": WIDE | {"projection": 48}},
        "flux1": {"text_encoder": {}},
    }
    torch.manual_seed(3)
    for name, config in more[family].items():
        tokenizer = parts[name.replace("text_encoder", "tokenizer")]
        parts[name] = toy.clip(tokenizer, num_hidden_layers=LAYERS, **config)
        norm = getattr(parts[name], "text_model", parts[name]).final_layer_norm
        torch.nn.init.normal_(norm.bias, 0.3, 0.1)  # as drawn its outputs have a mean of zero
    return parts


@pytest.fixture(scope="module")
def find(tmp_path_factory: pytest.TempPathFactory) -> Find:
    """A loaded toy base of a family, made once."""
    root, made = tmp_path_factory.mktemp("encoding"), dict[str, Any]()

    def get(family: str) -> TextToImage:
        if family not in made:
            folder = save_parts(with_layers(family), FAMILIES[family].pipeline, root / family)
            cpu = torch.device("cpu")
            made[family] = FAMILIES[family].load_class()(
                BaseFiles(str(folder)), dtype=torch.float32, device=cpu
            )
        return made[family]

    return get


class Plain:
    """A text encoder and its tokenizer, loaded by transformers alone."""

    def __init__(self, family: TextToImage, number: str = "") -> None:
        from transformers import AutoTokenizer, CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

        folder, name = Path(family.base.location), f"text_encoder{number}"
        classes = {
            kind.__name__: kind for kind in (CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel)
        }
        kind = classes[family.config(name)["architectures"][0]]
        self.model: Any = kind.from_pretrained(folder / name, dtype=torch.float32).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder / f"tokenizer{number}")

    def tokens(self, *texts: str) -> list[int]:
        return [id for text in texts for id in self.tokenizer(text, add_special_tokens=False).input_ids]

    def clip(self, tokens: list[int], layer: int | None = None) -> tuple[Tensor, Tensor]:
        """Hidden states and first output of 77 tokens: the last ones after the norm, or those of a layer."""
        ends = [self.tokenizer.bos_token_id], [self.tokenizer.eos_token_id]
        ids = ends[0] + tokens + ends[1]
        ids += [self.tokenizer.pad_token_id] * (77 - len(ids))
        assert len(ids) == 77
        with torch.no_grad():
            said = self.model(torch.tensor([ids]), output_hidden_states=True)
        return (said.last_hidden_state if layer is None else said.hidden_states[layer]), said

    def t5(self, tokens: list[int], length: int) -> Tensor:
        ids = [*tokens[: length - 1], self.tokenizer.eos_token_id]
        ids += [self.tokenizer.pad_token_id] * (length - len(ids))
        with torch.no_grad():
            return self.model(torch.tensor([ids])).last_hidden_state


def weighted(hidden: Tensor, weights: list[float], *, start: int = 1) -> Tensor:
    """Every output times its token's weight, then the mean of all as it was."""
    column = torch.ones(hidden.shape[1])
    column[start : start + len(weights)] = torch.tensor(weights)
    scaled = hidden * column[:, None]
    return scaled * (hidden.mean() / scaled.mean())


def at(schedule: Schedule, number: int = 0) -> dict[str, Tensor]:
    cond = schedule.at(number)
    assert SHARE not in cond
    return cond


def same(one: Tensor, other: Tensor) -> None:
    assert one.shape == other.shape
    assert float((one - other).abs().max()) < 2e-5 * float(other.abs().max())


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
