"""The text encoders of a pocket base that learn to read before they see a picture."""

import random

import pytest
import torch

from studio.pocket.build.kinds.base import Material
from studio.pocket.build.kinds.flux1 import PocketFlux1
from studio.pocket.build.networks import make_t5
from studio.pocket.build.reading import QUESTIONS, make_book, scene_loss
from studio.pocket.build.tokenizer import make_t5_tokenizer
from studio.pocket.stray import with_stray

CPU = torch.device("cpu")


def test_heads_of_t5_look_at_different_neighbours():
    """Without any learning: the first bias alone says where a head looks."""
    t5 = make_t5(make_t5_tokenizer(), 64, 1, looking=True)
    attention = t5.encoder.block[0].layer[0].SelfAttention
    bias = attention.compute_bias(9, 9)[0].detach()  # heads, asking token, asked token
    looked_at = bias[:, 4].argmax(-1).tolist()
    assert looked_at[:3] == [3, 5, 4]
    assert bias[2, 4, 3] > bias[2, 4, 0]
    assert bias[3, 4].abs().max() < 2.0, "the last one looks nowhere"


def test_a_book_says_what_its_captions_say():
    tokenizer = make_t5_tokenizer()
    texts = []

    def read(captions):
        texts.extend(captions)
        return {"ids_2": torch.tensor(tokenizer(captions, padding="max_length").input_ids)}

    book = make_book(read, 40)
    grounds, numbers = QUESTIONS["background"], list(QUESTIONS)
    for text, answers in zip(texts, book.answers.tolist(), strict=True):
        assert grounds[answers[numbers.index("background")]] in text
        assert QUESTIONS["shape"][answers[0]] in text
    held_out = make_book(lambda captions: {"ids_2": torch.zeros(len(captions), 1)}, 40, held_out=True)
    seen, judged = ({tuple(row[:3]) for row in part.answers.tolist()} for part in (book, held_out))
    assert not seen & judged


def test_stray_words_stand_beside_a_caption_and_leave_it_whole():
    rng = random.Random(1)
    told = [with_stray("a red ring", rng) for _ in range(200)]
    assert all("a red ring" in text for text in told)
    assert 30 < sum(text != "a red ring" for text in told) < 90


def test_a_reading_is_judged_by_every_question():
    answers = torch.tensor([[place % len(some) for place, some in enumerate(QUESTIONS.values())]])
    sure = torch.cat(
        [20.0 * torch.eye(len(some))[answers[:, place]] for place, some in enumerate(QUESTIONS.values())], -1
    )
    assert scene_loss(sure, answers) < 1e-3
    wrong = answers.clone()
    wrong[0, 2] += 1
    assert scene_loss(sure, wrong) == pytest.approx(20 / len(QUESTIONS), rel=1e-3)


def test_the_encoders_learn_to_read_and_the_painter_does_not_change(monkeypatch):
    monkeypatch.setattr("studio.pocket.build.kinds.flux1.CAPTIONS", 64)
    monkeypatch.setattr("studio.pocket.build.kinds.flux1.ASKED", 8)
    torch.manual_seed(0)
    kind = PocketFlux1()
    reading = kind.parts()[0]
    networks = [kind.models[name] for name in reading.models]
    weights = [p for part in (*networks, *reading.helpers) for p in part.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=3e-3)
    losses = []
    for step in range(30):
        inputs = reading.draw(None, 16, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        losses.append(reading.loss(inputs))
        losses[-1].backward()
        optimizer.step()
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert all(p.grad is None for p in kind.models["transformer"].parameters())
    assert "background" in reading.report()


def test_hidden_words_are_asked_for_and_padding_is_not():
    torch.manual_seed(0)
    kind = PocketFlux1()
    readers = kind.parts()[0].helpers[0]
    words = torch.tensor([[5, 6, 0, 0]] * 2)
    inputs = {
        "answers": torch.zeros(2, len(QUESTIONS), dtype=torch.long),
        "words": words,
        "spoken": words != 0,
    }
    hidden, pooled = torch.randn(2, 4, 128), torch.randn(2, 64)
    whole = readers.loss(hidden, pooled, inputs)
    inputs["words"] = torch.tensor([[5, 6, 9, 9]] * 2)
    assert readers.loss(hidden, pooled, inputs) == whole
    inputs["words"] = torch.tensor([[5, 7, 0, 0]] * 2)
    assert readers.loss(hidden, pooled, inputs) != whole


def test_guidance_is_learned_from_the_transformer_that_was_there_before():
    torch.manual_seed(0)
    kind = PocketFlux1()
    painter = kind.models["transformer"]
    torch.nn.init.normal_(painter.proj_out.weight, std=0.5)  # its answer is nothing before it has learned
    texts = kind.read([["a red circle on a white background"], ["two stars"]], CPU)
    material = Material(torch.randn(2, 16, 16, 16).half(), texts)
    guidance = kind.parts()[-1]
    guidance.begin()
    torch.nn.init.zeros_(painter.proj_out.weight)
    inputs = guidance.draw(material, 4, torch.Generator().manual_seed(1))
    with torch.no_grad():
        guided = guidance.loss(inputs)
        plain = guidance.loss(inputs | {"guidance": torch.ones(4)})
        assert plain == pytest.approx(float((inputs["noise"] - inputs["latents"]).square().mean()), rel=1e-4)
        assert guided != plain
