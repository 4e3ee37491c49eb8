"""Each captioner with a tiny model of its real class: loads, writes, refuses what is another."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from registry.errors import BadInput
from studio.datasets.captioners import base, blip, florence, qwen, tagger
from studio.datasets.captioners.base import Place
from studio.datasets.captioners.table import CAPTIONERS, CaptionOptions
from tests.support import captioners as tiny

CPU = torch.device("cpu")
LOAD = {"blip": blip.load, "florence2": florence.load, "qwen": qwen.load, "wd": tagger.load}
BUILD: dict[str, Callable[[Path], Path]] = {
    "blip": tiny.blip, "florence2": tiny.florence, "qwen": tiny.qwen, "wd": tiny.tagger
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("captioners")
    return {name: build(root / name) for name, build in BUILD.items()}


def pictures(count: int = 3) -> list[Image.Image]:
    shapes = ((40, 56), (64, 32), (48, 48))
    return [
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (*shapes[n % 3], 3), dtype=np.uint8))
        for n in range(count)
    ]


def load(name: str, folder: Path, **options: object) -> base.Captioner:
    values = {"captioner": name, "max_tokens": 12, **options}
    return LOAD[name](Place(folder, str(folder)), CaptionOptions(**values), CPU)  # type: ignore[arg-type]


def test_every_captioner_of_the_table_is_tried_here():
    assert set(CAPTIONERS) == set(LOAD) == set(BUILD)
    assert {info.module for info in CAPTIONERS.values()} == {
        module.__name__.rpartition(".")[2] for module in (blip, florence, qwen, tagger)
    }


@pytest.mark.parametrize("name", CAPTIONERS)
def test_captions_are_one_a_picture_and_the_same_alone(name: str, folders: dict[str, Path]):
    captioner = load(name, folders[name], threshold=0.3, character_threshold=0.3)
    together = captioner.caption(pictures())
    assert len(together) == 3
    assert all(isinstance(text, str) for text in together)
    assert any(together)
    assert not any(re.search(r"<(?:pad|s|/s|image)>|\[(?:DEC|SEP|PAD)\]|<\|", text) for text in together)
    assert [captioner.caption([picture])[0] for picture in pictures()] == together
    assert load(name, folders[name], threshold=0.3, character_threshold=0.3).caption(pictures()) == together


@pytest.mark.parametrize("name", CAPTIONERS)
def test_another_model_is_refused_in_one_line(name: str, folders: dict[str, Path]):
    other = folders["wd" if name != "wd" else "blip"]
    with pytest.raises(BadInput) as caught:
        load(name, other)
    assert str(caught.value).startswith(f"{other}: {'has no' if name == 'wd' else 'is a '}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CAPTIONERS)
def test_a_model_without_some_weights_is_refused(name: str, folders: dict[str, Path], tmp_path: Path):
    shutil.copytree(folders[name], tmp_path / "cut")
    weights = load_file(tmp_path / "cut" / "model.safetensors")
    gone = next(key for key in weights if key.endswith("weight") and "embed" not in key)
    del weights[gone]
    save_file(weights, tmp_path / "cut" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match="lacks 1 of its weights"):
        load(name, tmp_path / "cut")


def test_pickles_are_not_loaded(folders: dict[str, Path], tmp_path: Path):
    shutil.copytree(folders["blip"], tmp_path / "old")
    weights = load_file(tmp_path / "old" / "model.safetensors")
    (tmp_path / "old" / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "old" / "pytorch_model.bin")
    with pytest.raises(BadInput, match="cannot be loaded"):
        load("blip", tmp_path / "old")


def test_blip_goes_on_from_a_prompt(folders: dict[str, Path]):
    texts = load("blip", folders["blip"], prompt="a photo of").caption(pictures())
    assert all(text.startswith("a photo of") for text in texts)


def test_florence_knows_its_tasks(folders: dict[str, Path]):
    with pytest.raises(BadInput, match=r"is no task of Florence-2\. use <CAPTION>"):
        load("florence2", folders["florence2"], prompt="what is this?")
    assert load("florence2", folders["florence2"], prompt="<CAPTION>").caption(pictures(1))


def test_the_older_qwen_loads_too(tmp_path: Path):
    captioner = load("qwen", tiny.qwen(tmp_path / "q", "qwen2_vl"), prompt="what?")
    assert captioner.caption(pictures()) == [captioner.caption([p])[0] for p in pictures()]


def test_qwen_reads_pictures_as_its_own_processor_would(folders: dict[str, Path]):
    """The chat and the number of picture tokens, against the rule of the model's processor."""
    captioner = load("qwen", folders["qwen"], prompt="what?")
    seen: dict[str, torch.Tensor] = {}
    captioner._model.generate = lambda **inputs: seen.update(inputs) or inputs["input_ids"]  # type: ignore[attr-defined]
    captioner.caption(pictures(2))
    ids, grid = seen["input_ids"], seen["image_grid_thw"]
    assert (ids == 5).sum(1).tolist() == [int(row.prod()) // 4 for row in grid]
    assert seen["pixel_values"].shape[0] == int(grid.prod(1).sum())
    assert torch.equal(seen["mm_token_type_ids"], (ids == 5).long())
    assert (ids[1][seen["attention_mask"][1] == 1] == 3).sum() == 1
    assert seen["attention_mask"][:, -1].all()  # padded on the left


# -- the tagger


def scored(*rows: list[float], **options: object) -> list[str]:
    tags = [tagger.Tag(name, category) for name, category in tiny.TAGS]
    values = {"captioner": "wd", **options}
    made = tagger.Tagger(lambda _: torch.tensor(rows), tags, CaptionOptions(**values))  # type: ignore[arg-type]
    return made.caption(pictures(len(rows)))


def test_tags_are_chosen_by_threshold_and_written_as_words():
    row = [0.99, 0.99, 0.4, 0.9, 0.36, 0.9]
    assert scored(row) == ["miku (singer), ^_^, long hair, red eyes"]
    assert scored(row, threshold=0.5) == ["miku (singer), ^_^"]
    assert scored(row, character_threshold=0.95, leave_out=("long_hair",)) == ["^_^, red eyes"]
    assert scored([0.0] * 6, row) == ["", "miku (singer), ^_^, long hair, red eyes"]


def test_pictures_are_squared_with_white_and_come_in_blue_green_red():
    picture = Image.new("RGB", (20, 10), (255, 0, 51))
    pixels = tagger.prepare([picture], 20, (0.5,) * 3, (0.5,) * 3)[0]
    assert pixels.shape == (3, 20, 20)
    assert torch.all(pixels[:, :4] == 1)
    assert pixels[:, 10, 10].tolist() == pytest.approx([-0.6, -1, 1])


class Reference(nn.Module):
    """A ViT without class token written with torch's own layers, to compare with."""

    def __init__(self, w: dict[str, torch.Tensor]):
        super().__init__()
        self.w = w

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.w
        width = w["pos_embed"].shape[-1]
        x = nn.functional.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=16)
        x = x.flatten(2).transpose(1, 2) + w["pos_embed"]
        for n in range(2):
            at = f"blocks.{n}."
            attention = nn.MultiheadAttention(width, 1, batch_first=True)
            attention.load_state_dict(
                {
                    "in_proj_weight": w[f"{at}attn.qkv.weight"], "in_proj_bias": w[f"{at}attn.qkv.bias"],
                    "out_proj.weight": w[f"{at}attn.proj.weight"], "out_proj.bias": w[f"{at}attn.proj.bias"],
                }
            )  # fmt: skip
            h = self.norm(x, f"{at}norm1")
            x = x + attention(h, h, h)[0]
            h = self.norm(x, f"{at}norm2") @ w[f"{at}mlp.fc1.weight"].T + w[f"{at}mlp.fc1.bias"]
            h = 0.5 * h * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (h + 0.044715 * h**3)))
            x = x + h @ w[f"{at}mlp.fc2.weight"].T + w[f"{at}mlp.fc2.bias"]
        return self.norm(x, "norm").mean(1) @ w["head.weight"].T + w["head.bias"]

    def norm(self, x: torch.Tensor, at: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        spread = (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return centred / spread * self.w[f"{at}.weight"] + self.w[f"{at}.bias"]


def test_a_published_tagger_loads_without_timm_and_computes_a_vit(tmp_path: Path):
    folder = tiny.timm_tagger(tmp_path / "wd")
    captioner = load("wd", folder)
    found = captioner._score(pictures())  # type: ignore[attr-defined]
    with torch.no_grad():
        pixels = tagger.prepare(pictures(), 32, (0.5,) * 3, (0.5,) * 3)
        wanted = Reference(load_file(folder / "model.safetensors"))(pixels).sigmoid()
    assert torch.allclose(found, wanted, atol=1e-5)
    assert captioner.caption(pictures()) == [captioner.caption([picture])[0] for picture in pictures()]


def test_what_is_no_plain_vit_says_what_it_needs(tmp_path: Path):
    folder = tiny.timm_tagger(tmp_path / "swin", "swinv2_base_window8_256")
    if tagger.find_spec("timm") is None:
        with pytest.raises(BadInput, match="is a swinv2_base_window8_256, which needs the package timm"):
            load("wd", folder)
    folder = tiny.timm_tagger(tmp_path / "odd")
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"attn_pool.q.weight": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(BadInput, match=r"is no plain vision transformer: it has attn_pool\.q\.weight"):
        load("wd", folder)


def test_a_table_of_tags_that_does_not_fit_is_refused(folders: dict[str, Path], tmp_path: Path):
    shutil.copytree(folders["wd"], tmp_path / "wd")
    table = tmp_path / "wd" / "selected_tags.csv"
    table.write_text("name,category\nred,0\n")
    with pytest.raises(BadInput, match=r"has 6 labels and 1 rows in selected_tags\.csv"):
        load("wd", tmp_path / "wd")
    table.write_text("hello\nyou\n")
    with pytest.raises(BadInput, match="is no table of tags"):
        load("wd", tmp_path / "wd")
    table.unlink()
    with pytest.raises(BadInput, match=r"has no selected_tags\.csv"):
        load("wd", tmp_path / "wd")


# -- where models come from


def test_a_folder_is_used_as_it_is(tmp_path: Path):
    assert base.find(str(tmp_path)) == Place(tmp_path.resolve(), str(tmp_path))
    for wrong in ("nowhere", "./a/b", "/a/b", "a/b/c"):
        with pytest.raises(BadInput, match="is neither a folder nor a hub id"):
            base.find(wrong)


def test_the_hub_is_asked_for_one_commit_and_only_for_safe_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import huggingface_hub

    asked: dict[str, object] = {}

    class Api:
        def model_info(self, model: str, revision: str | None, timeout: float):
            asked["info"] = (model, revision)
            return type("Info", (), {"sha": "c" * 40})

    def snapshot(model: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked["snapshot"] = (model, revision, tuple(allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert base.find("owner/name", "v1") == Place(tmp_path, "owner/name", "c" * 40)
    assert asked["info"] == ("owner/name", "v1")
    assert asked["snapshot"] == ("owner/name", "c" * 40, base.FILES)
    assert not any(re.search(r"\.(py|bin|pt|pkl|ckpt)", pattern) for pattern in base.FILES)


def test_without_a_connection_what_is_there_is_used_or_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    class Api:
        def model_info(self, *_: object, **__: object):
            raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path / ("d" * 40)))
    assert base.find("owner/name").revision == "d" * 40

    def nothing(*_: object, **__: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", nothing)
    with pytest.raises(BadInput, match=r"owner/name: cannot be reached on the hub\. check the connection"):
        base.find("owner/name")


def test_the_configs_name_no_code(folders: dict[str, Path]):
    for folder in folders.values():
        assert "auto_map" not in json.loads((folder / "config.json").read_text())
