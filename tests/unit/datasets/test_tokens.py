"""Captions counted as the base counts them, and words that it knows."""

import json
from pathlib import Path

import pytest

from registry.records import Base, Dataset, Image
from studio.datasets.doctor import check_dataset
from studio.datasets.tokens import Reader, readers_of
from studio.workspace import Workspace
from trainers.recipe import preset


def pocket(ws: Workspace) -> Base:
    return ws.catalog.get(Base, "pocket")


def test_the_count_is_that_of_the_library_that_trains(ws: Workspace):
    from transformers import CLIPTokenizer

    base = pocket(ws)
    reader = readers_of(ws, base)[0]
    theirs = CLIPTokenizer.from_pretrained(str(ws.resolve(base.location) / "tokenizer"))
    for text in ("", "a red star", "Zibbolino, it's 12 o'clock!", "word " * 90, "ünïcode 漢字 \n two"):
        assert reader.count(text) == len(theirs(text, verbose=False).input_ids)


def test_clips_older_files_are_read_as_well(ws: Workspace, tmp_path: Path):
    base = pocket(ws)
    whole = readers_of(ws, base)[0]
    model = json.loads((ws.resolve(base.location) / "tokenizer" / "tokenizer.json").read_text())["model"]
    folder = tmp_path / "base" / "tokenizer"
    folder.mkdir(parents=True)
    extra = {"<|startoftext|>": 758, "<|endoftext|>": 759}
    (folder / "vocab.json").write_text(json.dumps(model["vocab"] | extra))
    pairs = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]))
    older = Base(name="older", family="sd15", location=str(tmp_path / "base"), kind="folder")
    reader: Reader = readers_of(ws, older)[0]
    for text in ("a red star", "Zibbolino, it's 12 o'clock!", "word " * 90):
        assert reader.count(text) == whole.count(text)
    assert readers_of(ws, Base(name="hub", family="sd15", location="a/b", kind="hub")) == []


@pytest.mark.parametrize(("trigger", "severity"), [("star", "info"), ("zibbolino", ""), ("red star", "info")])
def test_a_trigger_that_means_something_is_said_to(ws: Workspace, trigger: str, severity: str):
    caption = f"{trigger}, a wall"
    images = [
        Image(blob=f"{n:064x}", pixel_hash=f"p{n}", name=f"{n}.png", width=64, height=64, caption=caption)
        for n in range(6)
    ]
    dataset = ws.catalog.add_dataset(Dataset(name="d", trigger=trigger), images)
    chosen = preset("sd15", "style", "pocket")
    found = {f.code: f for f in check_dataset(ws, dataset, chosen, pocket(ws))}
    assert (found["trigger-known"].severity if "trigger-known" in found else "") == severity
    hub = Base(
        name="hub", family="sd15", location="a/b", kind="hub"
    )  # no tokenizer here: a list of usual words
    assert "trigger-known" not in {f.code for f in check_dataset(ws, dataset, chosen, hub)}


def test_tokens_count_where_words_would_not(ws: Workspace):
    caption = "zibbolino, " + "incomprehensibility " * 20  # 21 words
    images = [Image(blob="a" * 64, pixel_hash="p", name="1.png", width=64, height=64, caption=caption)]
    dataset = ws.catalog.add_dataset(Dataset(name="d", trigger="zibbolino"), images)
    chosen = preset("sd15", "style", "pocket")
    found = {f.code: f.message for f in check_dataset(ws, dataset, chosen, pocket(ws))}
    assert "more than the 77 tokens that the base reads" in found["long-captions"]
    assert "long-captions" not in {f.code for f in check_dataset(ws, dataset, chosen)}
