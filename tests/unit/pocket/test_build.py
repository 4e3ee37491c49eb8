"""The pocket base from nothing, at a size that takes seconds."""

import itertools

import pytest
import torch
from transformers import CLIPTokenizer

from registry.errors import Damaged
from studio.pocket import check
from studio.pocket.build.__main__ import BuildPlan, build, main
from studio.pocket.build.stage import Stage, rate, run_stage
from studio.pocket.build.tokenizer import byte_alphabet, make_tokenizer
from studio.pocket.grammar import evaluation_scenes

TINY = BuildPlan(
    pictures=40, autoencoder_steps=12, denoiser_steps=12, autoencoder_batch=8, denoiser_batch=4, prompts=1
)


def line_stage(folder, steps):
    """A stage that fits y = 3 x: small enough to compare weights to the bit."""
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)
    stage = Stage(
        "line", [model], folder / "line.state", peak_lr=0.05, beta2=0.9, weight_decay=0, steps=steps
    )

    def loss_of(_step, _steps, generator):
        x = torch.randn(16, 1, generator=generator)
        return (model(x) - 3 * x).square().mean()

    return model, stage, loss_of


def test_a_stage_learns(tmp_path):
    model, stage, loss_of = line_stage(tmp_path, 300)
    losses = run_stage(stage, loss_of, lambda _: None, resume=False)
    assert len(losses) == 300
    assert losses[-1] < losses[0] / 50
    assert model.weight.item() == pytest.approx(3, abs=0.1)


def test_a_resumed_stage_ends_where_the_uninterrupted_one_does(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    through, stage, loss_of = line_stage(tmp_path / "a", 60)
    run_stage(stage, loss_of, lambda _: None, resume=False)

    monkeypatch.setattr("studio.pocket.build.stage.SAVE_SECONDS", 0.0)
    _, stage, loss_of = line_stage(tmp_path / "b", 60)

    class Ended(Exception):
        """Stands for a killed process."""

    def end(step):
        if step == 24:
            raise Ended

    with pytest.raises(Ended):
        run_stage(stage, loss_of, lambda _: None, resume=False, at_mark=end)
    resumed, stage, loss_of = line_stage(tmp_path / "b", 0)  # the number of steps comes from the state
    losses = run_stage(stage, loss_of, lambda _: None, resume=True)
    assert len(losses) == 36
    assert torch.equal(resumed.weight, through.weight)
    assert torch.equal(resumed.bias, through.bias)


def test_a_foreign_state_is_named(tmp_path):
    _, stage, loss_of = line_stage(tmp_path, 4)
    torch.save({"step": 1}, stage.state_file)
    with pytest.raises(Damaged, match=r"line\.state"):
        run_stage(stage, loss_of, lambda _: None, resume=True)


def test_the_rate_rises_holds_and_falls():
    values = [rate(step, 1000, 0.25) for step in range(1000)]
    assert values[0] == pytest.approx(1 / 50)
    assert values[60] == values[249] == pytest.approx(1)
    assert values[-1] == pytest.approx(0.02, abs=1e-3)
    assert all(a >= b for a, b in itertools.pairwise(values[60:]))


def test_a_tiny_build_makes_a_pipeline_that_draws_and_resumes(tmp_path):
    said = []
    result = build(tmp_path / "out", TINY, said.append)
    assert len(result.autoencoder_losses) == len(result.denoiser_losses) == 12
    assert sum(result.autoencoder_losses[-3:]) < sum(result.autoencoder_losses[:3])
    assert any("of held-out prompts" in line for line in said)
    pipe = check.load(result.model)
    drawn = check.measure(pipe, evaluation_scenes(2))
    assert 0 <= drawn.all <= 1
    assert pipe.vae.config.scaling_factor == pytest.approx(1, abs=100)

    again = build(tmp_path / "out", TINY, said.append, resume=True)  # everything is done already
    assert again.autoencoder_losses == again.denoiser_losses == []
    first = dict(pipe.unet.named_parameters())
    for name, value in check.load(again.model).unet.named_parameters():
        assert torch.equal(value, first[name]), name


def test_an_earlier_build_is_not_overwritten(tmp_path):
    (tmp_path / "denoiser.state").write_bytes(b"")
    with pytest.raises(ValueError, match="holds an earlier build"):
        main(["--out", str(tmp_path)])
    with pytest.raises(ValueError, match="--minutes"):
        main(["--minutes", "0", "--out", str(tmp_path)])


def test_the_tokenizer_keeps_grammar_words_whole_and_reads_anything(tmp_path):
    tokenizer = make_tokenizer()
    words = "two blue squares on a yellow background"
    assert tokenizer.tokenize(words) == [f"{word}</w>" for word in words.split()]
    odd = "naïve 日本 🦊 zvq's"
    assert tokenizer.decode(tokenizer(odd).input_ids, skip_special_tokens=True).replace(
        " ", ""
    ) == odd.replace(" ", "")
    assert len(set(byte_alphabet().values())) == 256
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    assert again("a pink star").input_ids == tokenizer("a pink star").input_ids


def test_the_shipped_tokenizer_reads_prompts_as_the_built_one_does():
    shipped, built = CLIPTokenizer.from_pretrained(check.MODEL / "tokenizer"), make_tokenizer()
    words = "three small striped orange crosses at the top on a gray background"
    assert shipped.tokenize(words) == built.tokenize(words)
