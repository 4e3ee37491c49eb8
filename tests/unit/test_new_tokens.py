"""New words: what the tokenizer makes of them, that only their vectors learn, and what a file holds."""

import pytest
import torch
from safetensors.torch import load_file

from registry.errors import BadInput
from tests.support.runs import recipe, train, write_run
from trainers.families import FAMILIES
from trainers.families.base import BaseFiles
from trainers.families.toy import clip_tokenizer
from trainers.methods import attach
from trainers.new_tokens import Words, embedding_of, learn_words, set_words
from trainers.priors import check_words
from trainers.recipe import AdapterSection, TokensSection, apply_sets

CPU = torch.device("cpu")
CHANGES = {
    "tokens.words": ("zork",), "tokens.init": ("red",), "tokens.vectors": 3, "tokens.lr": 5e-3,
    "data.trigger": "zork", "data.caption_dropout": 0.0,
}  # fmt: skip
KEY = "text_encoder.new_tokens.zork"


def load(base, family="sd15"):
    return FAMILIES[family].load_class()(BaseFiles(str(base)), dtype=torch.float32, device=CPU)


def test_a_new_word_stands_for_its_tokens_and_nothing_else_changes():
    plain = clip_tokenizer()
    words = Words(plain, {"zork": 2, "<my-cat>": 1})
    options = {"padding": "max_length", "max_length": 77, "truncation": True}
    known = "a photo of a red dog, zorks, thezork."
    assert words(known, **options).input_ids == plain(known, **options).input_ids
    first = len(words)
    assert first == len(plain)
    ids = words(["Zork, <my-cat> zork"], add_special_tokens=False).input_ids[0]
    comma = plain(",", add_special_tokens=False).input_ids
    assert ids == [first, first + 1, *comma, first + 2, first, first + 1]
    cut = words("zork " * 50, max_length=77, truncation=True).input_ids
    assert (len(cut), cut[0], cut[-1]) == (77, plain.bos_token_id, plain.eos_token_id)
    assert plain("zork").input_ids != words("zork").input_ids  # the base's own is not touched


@pytest.mark.parametrize("name", ["sd15", "sd21"])
def test_a_word_begins_as_its_text_and_only_its_vectors_learn(name, request):
    family = load(request.getfixturevalue(f"tiny_{name}"), name)
    before = family.encode_text(["a red disc", "", "zork"])
    table = embedding_of(family.part("text_encoder")).weight.clone()
    section = TokensSection(words=("zork",), init=("red",), vectors=1)
    trainables = attach(family, AdapterSection(rank=2), 0)
    named = learn_words(family, section, 0)
    after = family.encode_text(["a zork disc", "", "zork"])
    assert torch.equal(after["hidden"][:2], before["hidden"][:2])
    assert not torch.equal(after["hidden"][2], before["hidden"][2])
    assert list(named) == [KEY]
    assert named[KEY].shape == (1, table.shape[1])

    hidden = family.conditioning(family.tokenize(["a zork disc"]))["hidden"]
    family.predict(
        torch.randn(1, 4, 8, 8), torch.tensor([300]), {"hidden": hidden}, []
    ).square().mean().backward()
    assert named[KEY].grad.abs().max() > 0
    learning = {
        key
        for part in (family.denoiser, family.part("text_encoder"))
        for key, p in part.named_parameters()
        if p.grad is not None
    }
    assert all("lora" in key or "rows" in key for key in learning)

    with torch.no_grad():
        named[KEY] += 1.0
    moved = family.encode_text(["a zork disc"])["hidden"]
    assert not torch.allclose(moved[0], before["hidden"][0])
    trainables.components.update(family.text_encoders)
    with trainables.disabled():  # the word means what it meant
        assert torch.equal(family.encode_text(["a zork disc"])["hidden"][0], before["hidden"][0])
    assert torch.equal(embedding_of(family.part("text_encoder")).weight, table)
    set_words(family, {})
    assert torch.equal(family.encode_text(["zork"])["hidden"][0], before["hidden"][2])


def test_random_starts_differ_and_several_vectors_take_turns(tiny_sd15):
    family = load(tiny_sd15)
    section = TokensSection(words=("one", "two", "three"), init=("", "", "a red"), vectors=4)
    named = learn_words(family, section, 0)
    one, two, three = named.values()
    table = embedding_of(family.part("text_encoder")).weight
    assert not torch.allclose(one, two)
    assert not torch.allclose(one[0], one[1])
    assert float(one.detach().std()) == pytest.approx(float(table.std()), rel=0.4)
    ids = family.part("tokenizer").plain("a red", add_special_tokens=False).input_ids
    assert torch.equal(three, table[[ids[i % len(ids)] for i in range(4)]])


def test_vectors_of_another_width_are_refused(tiny_sd15):
    with pytest.raises(BadInput, match="word zork: has vectors of 7 values, text_encoder reads 32"):
        set_words(load(tiny_sd15), {"zork": {"text_encoder": torch.zeros(2, 7)}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens.only": True}, "no words to learn"),
        ({"tokens.words": ("zork", "Zork")}, "a word twice"),
        ({"tokens.words": ("zork",), "tokens.init": ("a", "b")}, "more texts than"),
        (
            {"tokens.words": ("zork",), "optimizer.name": "prodigy", "optimizer.lr": 1.0},
            "prodigy has one rate",
        ),
    ],
)
def test_words_that_cannot_be_learned_are_refused(changes, message):
    with pytest.raises(BadInput, match=message):
        check_words(recipe(changes))


def test_a_word_has_no_spaces():
    with pytest.raises(BadInput, match=r"tokens\.words is .* must be words of 2 to 50 letters"):
        apply_sets(recipe(), ['tokens.words=["two words"]'])
    assert apply_sets(recipe(), ['tokens.words=["<my-cat>"]']).tokens.words == ("<my-cat>",)


def test_pivotal_tuning_saves_both(tmp_path, tiny_sd15, pictures):
    rundir = write_run(
        tmp_path / "run", tiny_sd15, pictures, CHANGES | {"tokens.until": 0.5, "preview.every": 6}
    )
    assert train(rundir) == 0, rundir.file("log.txt").read_text()
    tensors = load_file(rundir.adapter)
    assert tensors[KEY].shape == (3, 32)
    assert any("lora_A" in key for key in tensors)
    rates = [line["tokens_lr"] for line in rundir.read_metrics()]
    assert [rate > 0 for rate in rates] == [True] * 3 + [False] * 3
    states = [load_file(folder / "state.safetensors") for folder in rundir.checkpoints()[-2:]]
    assert torch.equal(states[0][f"weights.{KEY}"], states[1][f"weights.{KEY}"])
    assert rundir.read_status().warnings == []


def test_pissa_and_words_go_together(tmp_path, tiny_sd15, pictures):
    changes = {"adapter.method": "pissa", "adapter.alpha": None, "train.max_steps": 2}
    rundir = write_run(tmp_path / "run", tiny_sd15, pictures, CHANGES | changes)
    assert train(rundir) == 0, rundir.file("log.txt").read_text()
    saved = load_file(rundir.checkpoints()[-1] / "adapter.safetensors")
    assert saved[KEY].shape[0] == 3
    assert {value.shape[0] for key, value in saved.items() if key.endswith("lora_A.weight")} == {8}


def test_a_word_finds_what_it_is_trained_towards(tiny_sd15):
    """Inversion proper: the base's own predictions for "a red disc" are the target of "a zork disc"."""
    family = load(tiny_sd15)
    with torch.no_grad():  # a random UNet hardly listens to the text; this one does
        for name, parameter in family.denoiser.named_parameters():
            if "attn2" in name:
                parameter *= 4
    x_t, t = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(50, 1000, 125)
    with torch.no_grad():
        wanted = family.predict(x_t, t, family.encode_text(["a red disc"] * 8), [])
    named = learn_words(family, TokensSection(words=("zork",), vectors=2), 0)
    optimizer = torch.optim.Adam(named.values(), lr=0.05)
    losses = []
    for _ in range(40):
        cond = family.conditioning(family.tokenize(["a zork disc"] * 8))
        loss = (family.predict(x_t, t, cond, []) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_textual_inversion_learns_the_words_alone(tmp_path, tiny_sd15, pictures):
    changes = CHANGES | {"tokens.only": True, "tokens.init": ()}
    rundir = write_run(tmp_path / "run", tiny_sd15, pictures, changes)
    assert train(rundir) == 0, rundir.file("log.txt").read_text()
    assert set(load_file(rundir.adapter)) == {KEY}
    first, last = (load_file(folder / "adapter.safetensors")[KEY] for folder in rundir.checkpoints()[-2:])
    assert (last - first).abs().max() > 0
    assert rundir.read_status().warnings == []


def test_a_word_that_no_caption_names_is_refused(tmp_path, tiny_sd15, pictures):
    rundir = write_run(tmp_path / "run", tiny_sd15, pictures, CHANGES | {"data.trigger": "other"})
    assert train(rundir) == 2
    assert rundir.read_status().reason.startswith("tokens.words: 'zork' is in no caption")
