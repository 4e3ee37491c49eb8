"""The pocket bases from nothing, at a size that takes seconds."""

import itertools
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from transformers import CLIPTokenizer, T5Tokenizer

from registry.errors import BadInput, Damaged
from studio.pocket import check
from studio.pocket.build import together, worker
from studio.pocket.build.__main__ import main
from studio.pocket.build.autoencoder import hatchings
from studio.pocket.build.drawing import draw_files
from studio.pocket.build.files import Files, pack_reports
from studio.pocket.build.kinds import flux1
from studio.pocket.build.kinds.base import Material
from studio.pocket.build.kinds.table import KINDS, make_kind
from studio.pocket.build.networks import make_autoencoder
from studio.pocket.build.stage import Diverged, Stage, rate, run_stage, steps_in
from studio.pocket.build.together import BuildPlan, build
from studio.pocket.build.tokenizer import byte_alphabet, make_t5_tokenizer, make_tokenizer
from studio.pocket.grammar import evaluation_scenes
from studio.workspace import PACKAGED
from trainers.families import FAMILIES
from trainers.families.base import BaseFiles
from trainers.plan import Geometry

TINY = ("--batch", "4", "--prompts", "1", "--marks", "2")
FAMILY_OF = {"pocket": "sd15", "pocket-xl": "sdxl", "pocket-sd35": "sd35", "pocket-flux": "flux1"}
CAPTIONS = [["a red circle on a white background", "two stars"], ["a blue heart", "three pink rings"]]


def line_stage(folder, steps=0, **more):
    """A stage that fits y = 3 x: small enough to compare weights to the bit."""
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)
    stage = Stage(
        "line", [model], folder / "line.state", peak_lr=0.05, beta2=0.9, weight_decay=0, steps=steps, **more
    )

    def draw(generator):
        return {"x": torch.randn(16, 1, generator=generator)}

    def loss_of(inputs):
        return (model(inputs["x"]) - 3 * inputs["x"]).square().mean()

    return model, stage, draw, loss_of


def quiet(_text):
    pass


def test_a_stage_learns(tmp_path):
    model, *stage = line_stage(tmp_path, 400)
    losses = run_stage(*stage, quiet, resume=False)
    assert losses[-1] < losses[0] / 50
    assert model.weight.item() == pytest.approx(3, abs=0.1)


def test_a_resumed_stage_ends_where_the_uninterrupted_one_does(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    through, *stage = line_stage(tmp_path / "a", 60)
    run_stage(*stage, quiet, resume=False)

    monkeypatch.setattr("studio.pocket.build.stage.SAVE_SECONDS", 0.0)
    _, *stage = line_stage(tmp_path / "b", 60)

    class Ended(Exception):
        """Stands for a killed process."""

    def end(mark):
        if mark.step == 24:
            raise Ended

    with pytest.raises(Ended):
        run_stage(*stage, quiet, resume=False, at_mark=end)
    resumed, *stage = line_stage(tmp_path / "b")  # the number of steps comes from the state
    seen = []
    run_stage(*stage, quiet, resume=True, at_mark=lambda mark: seen.append(mark.step))
    assert seen == [30, 36, 42, 48, 54, 60]
    assert torch.equal(resumed.weight, through.weight)
    assert torch.equal(resumed.bias, through.bias)


def test_a_stage_ends_when_its_time_is_up_and_a_resumed_one_has_only_the_rest(tmp_path):
    begun = time.time()
    _, *stage = line_stage(tmp_path, until=begun + 0.5)
    seen = []
    run_stage(*stage, quiet, resume=False, at_mark=seen.append)
    assert 0.5 <= time.time() - begun < 5
    assert len(seen) == 10
    assert all(a.seconds < b.seconds for a, b in itertools.pairwise(seen))
    done = seen[-1].step
    _, *stage = line_stage(tmp_path, until=time.time() + 1000)
    assert run_stage(*stage, quiet, resume=True) == []
    assert torch.load(tmp_path / "line.state", weights_only=True)["step"] == done


def test_a_stage_that_begins_too_late_does_a_step(tmp_path):
    _, *stage = line_stage(tmp_path, until=time.time() - 9)
    run_stage(*stage, quiet, resume=False)
    assert steps_in(stage[0].state_file) >= 1  # a second one where the first took less than a millisecond


def test_a_loss_that_is_no_number_ends_the_stage_and_spares_the_state(tmp_path):
    _, stage, draw, _ = line_stage(tmp_path, 100)
    with pytest.raises(Diverged, match=r"line: the loss is nan at step 10"):
        run_stage(
            stage, draw, lambda inputs: stage.modules[0](inputs["x"]).mean() * torch.nan, quiet, resume=False
        )
    assert not stage.state_file.exists()


def test_a_foreign_state_is_named(tmp_path):
    _, *stage = line_stage(tmp_path, 4)
    torch.save({"step": 1}, stage[0].state_file)
    with pytest.raises(Damaged, match=r"line\.state"):
        run_stage(*stage, quiet, resume=True)


def test_the_rate_rises_holds_and_falls():
    values = [rate(step / 1000, 0.25) for step in range(1000)]
    assert values[0] == pytest.approx(0.02)
    assert values[60] == values[249] == pytest.approx(1)
    assert values[-1] == pytest.approx(0.02, abs=1e-3)
    assert all(a >= b for a, b in itertools.pairwise(values[60:]))


def test_any_number_of_processes_draws_the_same_pictures(tmp_path):
    for count in (1, 2):
        (tmp_path / str(count)).mkdir()
        draw_files(tmp_path / str(count), "captioned", 520, quiet, processes=count)
    one, two = Files(tmp_path / "1"), Files(tmp_path / "2")
    assert np.array_equal(np.load(one.pixels("captioned")), np.load(two.pixels("captioned")))
    captions = one.captions("captioned").read_text()
    assert captions == two.captions("captioned").read_text()
    assert len(captions.splitlines()) == 520
    assert all(len(json.loads(line)) == 4 for line in captions.splitlines())


def test_hatching_is_two_pixels_wide():
    pictures = hatchings().float()
    assert pictures.shape == (32, 3, 64, 64)
    grey = pictures.mean(1)
    steps = grey.diff(dim=-1).abs().mean() + grey.diff(dim=-2).abs().mean()
    assert steps > 60, "ink beside paper all over, not their mean"


@pytest.mark.parametrize("name", KINDS)
def test_each_base_learns_what_it_is_shown(name):
    torch.manual_seed(0)
    kind = make_kind(name)
    texts = kind.read(CAPTIONS, torch.device("cpu"))
    assert texts.different == 5
    latents = torch.randn(2, KINDS[name].channels, 16, 16).half()
    material, generator = Material(latents, texts), torch.Generator().manual_seed(1)
    inputs = kind.draw(material, 6, generator)
    again = kind.draw(material, 6, torch.Generator().manual_seed(1))
    assert all(torch.equal(value, again[key]) for key, value in inputs.items())
    weights = [p for model in kind.models.values() for p in model.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=2e-3)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        losses.append(kind.loss(inputs))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    reached = {
        name for name, model in kind.models.items() if any(p.grad is not None for p in model.parameters())
    }
    assert reached == set(kind.models), "every network learns"
    size = sum(p.numel() for p in weights)
    assert size < 6_500_000, "with its autoencoder under 15 MB in fp16"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four bases after two steps, stage by stage in this process; few and quick pictures judge them."""
    out = tmp_path_factory.mktemp("pocket") / "out"
    (out / "packed").mkdir(parents=True)
    draw_files(out, "mixed", 10, quiet)
    draw_files(out, "captioned", 20, quiet)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "STEPS", 2)
        patch.setattr(worker, "JUDGED", 8)
        patch.setattr(flux1, "CAPTIONS", 16)
        patch.setattr(flux1, "ASKED", 4)
        for stage in ("autoencoder-4", "autoencoder-16", *KINDS):
            where = ["--out", str(out), "--pack", str(out / "packed")]
            assert worker.main([stage, *where, "--steps", "2", *TINY]) == 0
    pack_reports(out, list(KINDS), out / "packed" / "reports.tar")
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_build_makes_pipelines_that_draw(built, name, monkeypatch):
    out = built
    monkeypatch.setattr(check, "STEPS", 3)
    pipe = check.load(out / name / "model")
    scenes = evaluation_scenes(2)
    pictures = check.draw(pipe, scenes)
    assert [picture.size for picture in pictures] == [(64, 64)] * 2
    assert check.contact_sheet(pictures, scenes).size == (8 * 128, 168)
    figures = json.loads((out / name / "fidelity.json").read_text())
    assert {"psnr_grammar", "hatching_kept", "count", "all"} <= set(figures)
    lines = (out / name / "curve.jsonl").read_text().splitlines()
    marks = {"pocket-flux": [8, 12]}.get(name, [4, 8])  # its two parts that pictures judge: 2 steps and 1
    assert [json.loads(line)["samples"] for line in lines] == marks
    with tarfile.open(out / "packed" / f"{name}.tar") as tar:
        assert f"{name}/model/model_index.json" in tar.getnames()
    with tarfile.open(out / "packed" / "reports.tar") as tar:
        assert f"{name}/sheet.png" in tar.getnames()
    for config in (out / name / "model").rglob("config.json"):
        assert str(out) not in config.read_text(), "no folder of this machine"


def test_a_build_can_start_from_the_autoencoder_that_is_shipped(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "JUDGED", 2)
    draw_files(tmp_path, "captioned", 4, quiet)
    assert worker.main(["autoencoder-16", "--out", str(tmp_path), "--shipped"]) == 0
    files = Files(tmp_path)
    assert not files.pixels("mixed").exists()
    latents = torch.from_numpy(np.load(files.latents(16))).float()
    vae = AutoencoderKL.from_pretrained(files.autoencoder(16))
    back = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample
    pictures = torch.from_numpy(np.load(files.pixels("captioned"))) / 127.5 - 1
    assert (back - pictures).abs().mean() < 0.05, "it is a trained one"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "channels"), [("pocket", 4), ("pocket-flux", 16)])
def test_a_shipped_base_can_be_trained_further(tmp_path, monkeypatch, name, channels):
    monkeypatch.setattr(check, "STEPS", 2)
    monkeypatch.setattr(worker, "JUDGED", 2)
    draw_files(tmp_path, "captioned", 4, quiet)
    assert worker.main([f"autoencoder-{channels}", "--out", str(tmp_path), "--shipped"]) == 0
    still = ["--steps", "1", "--rate", "1e-9", *TINY]
    assert worker.main([name, "--out", str(tmp_path), "--further", *still]) == 0
    denoiser = next(iter(make_kind(name).models))
    mine, shipped = (
        load_file(next((folder / denoiser).glob("*.safetensors")))
        for folder in (Files(tmp_path).result(name) / "model", PACKAGED[name])
    )
    assert mine.keys() == shipped.keys()
    assert all(torch.allclose(mine[key].float(), shipped[key].float(), atol=1e-4) for key in mine)
    assert not list(tmp_path.glob("*reading*")), "its text encoders read already"


@pytest.mark.parametrize("name", KINDS)
def test_a_family_asks_a_base_as_it_was_trained(name, tmp_path):
    """What the denoiser is given in training and by the studio: the same for the same captions."""
    torch.manual_seed(0)
    kind = make_kind(name)
    denoiser = kind.models.get("unet") or kind.models["transformer"]
    given = []
    texts = kind.read([[CAPTIONS[0][0]], [CAPTIONS[1][0]]], torch.device("cpu"))
    latents = torch.randn(2, KINDS[name].channels, 16, 16).half()
    inputs = kind.draw(Material(latents, texts), 2, torch.Generator().manual_seed(1))
    inputs |= {key: table[1:].long() for key, table in texts.ids.items()}  # each caption once, in order
    inputs |= {"heard": torch.ones(2), "guidance": torch.ones(2)}
    inputs["time_ids"] = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
    folder = tmp_path / "base"
    kind.pipeline(make_autoencoder(KINDS[name].channels), kind.models).save_pretrained(folder)
    denoiser.register_forward_pre_hook(
        lambda _m, args, kwargs: given.append((args, kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        kind.loss(inputs)
    family = FAMILIES[FAMILY_OF[name]].load_class()(
        BaseFiles(str(folder)), dtype=torch.float32, device=torch.device("cpu")
    )
    family.put(family.denoiser_name, denoiser)
    noisy, t = kind.noisy(inputs)
    cond = family.encode_text([CAPTIONS[0][0], CAPTIONS[1][0]])
    with torch.no_grad():
        family.predict(
            noisy, t, cond | {"guidance": torch.ones(2)}, [Geometry((64, 64), (0, 0), (64, 64))] * 2
        )
    trained, asked = tensors_in(given[0]), tensors_in(given[-1])
    assert len(trained) == len(asked) >= 3
    for one, other in zip(trained, asked, strict=True):
        assert torch.allclose(one.float(), other.float(), atol=1e-5)
    assert family.latent_factor == 4
    assert {"pocket-sd35": 77 + 64, "pocket-flux": 64}.get(name, 77) == cond["hidden"].shape[1]


def tensors_in(value):
    """Every tensor in a call's arguments, by the names of the keywords."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for key in sorted(value) for t in tensors_in(value[key])]
    return [t for part in value for t in tensors_in(part)] if isinstance(value, tuple) else []


@pytest.mark.slow
def test_the_command_builds_resumes_and_packs(tmp_path, capfd):
    """Everything in processes of its own, by time; the second call finds all done."""
    kinds, packed = ("pocket", "pocket-xl"), tmp_path / "packed"
    plan = BuildPlan(kinds, minutes=0.02, pictures=20, together=True, pack=packed, options=TINY)
    assert build(tmp_path / "out", plan, quiet) == []
    assert build(tmp_path / "out", plan, quiet, resume=True) == []
    said = capfd.readouterr().err
    assert "pocket: end: background" in said
    with tarfile.open(tmp_path / "packed" / "reports.tar") as tar:
        assert "pocket/sheet.png" in tar.getnames()
    assert (tmp_path / "out" / "pocket" / "model" / "model_index.json").exists()


class Pretended:
    """A builder whose processes end with the codes given, one after the other."""

    def __init__(self, codes):
        self.codes, self.started = codes, []

    def __call__(self, _builder, stage, _until, options):
        self.started.append((stage, *options))
        code = self.codes.get(stage, [0]).pop(0) if self.codes.get(stage) else 0
        return subprocess.Popen([sys.executable, "-c", f"import time; exit({code})"])


def pretend(monkeypatch, tmp_path, **codes):
    pretended, said = Pretended({name.replace("_", "-"): list(ends) for name, ends in codes.items()}), []
    monkeypatch.setattr(together, "draw_files", lambda *_, **__: None)
    monkeypatch.setattr(together._Builder, "_popen", lambda *args: pretended(*args))
    plan = BuildPlan(("pocket", "pocket-flux"), minutes=0.01, together=True)
    return pretended.started, said, build(tmp_path, plan, said.append)


def test_what_fails_is_started_again_in_another_way(monkeypatch, tmp_path):
    started, said, failed = pretend(monkeypatch, tmp_path, pocket=(75,), pocket_flux=(76, 1))
    assert failed == []
    assert ("pocket", "--resume", "--rate", "1.0", "--plain") in started
    assert ("pocket-flux", "--resume", "--rate", "0.5") in started
    assert ("pocket-flux", "--resume", "--rate", "0.5", "--plain") in started
    assert any("pocket: could not be recorded; tried again" in line for line in said)


def test_what_fails_for_good_takes_only_its_own_with_it(monkeypatch, tmp_path):
    started, said, failed = pretend(monkeypatch, tmp_path, autoencoder_16=(1, 1, 1))
    assert failed == ["pocket-flux"]
    assert [stage for stage, *_ in started].count("autoencoder-16") == 3
    assert any("autoencoder-16: given up" in line for line in said)


def test_an_earlier_build_is_not_overwritten(tmp_path):
    (tmp_path / "pocket.state").write_bytes(b"")
    with pytest.raises(BadInput, match="holds an earlier build"):
        main(["--out", str(tmp_path)])
    with pytest.raises(BadInput, match="--minutes"):
        main(["--minutes", "0", "--out", str(tmp_path)])
    with pytest.raises(BadInput, match="pocket-xxl: is no pocket base"):
        main(["pocket-xxl", "--out", str(tmp_path)])


def test_t5s_tokenizer_keeps_words_whole_and_reads_anything(tmp_path):
    tokenizer = make_t5_tokenizer()
    words = "two blue squares on a yellow background"
    assert tokenizer.tokenize(words) == ["\u2581" + word for word in words.split()]
    assert tokenizer.unk_token_id not in tokenizer("naïve zvq's, neonsign!").input_ids
    tokenizer.save_pretrained(tmp_path)
    again = T5Tokenizer.from_pretrained(tmp_path)
    assert again("a pink star zvq").input_ids == tokenizer("a pink star zvq").input_ids
    assert again.model_max_length == 64


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
