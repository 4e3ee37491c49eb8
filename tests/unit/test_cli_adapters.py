"""`studio adapters` for one and for many: filters, saved filters, tags, ratings, trash, export."""

import json
from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np
import pytest
from safetensors.numpy import save_file

from registry.hashing import hash_adapter
from registry.records import Adapter
from studio.workspace import Workspace
from tests.support.cli import call_here

TO_Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def ws(tmp_path):
    """Four adapters with real files: ink 0, ink 1, ink 2 and chalk."""
    made = Workspace.open(tmp_path / "home")
    for n, name in enumerate(("ink 0", "ink 1", "ink 2", "chalk")):
        path = made.home / "adapters" / f"{n}.safetensors"
        draw = np.random.default_rng(n)
        sides = {"A": (4, 32), "B": (32, 4)}
        save_file(
            {
                f"{TO_Q}.lora_{s}.weight": draw.normal(size=shape).astype(np.float32)
                for s, shape in sides.items()
            },
            path,
        )
        hashes = hash_adapter(path)
        made.catalog.add(
            Adapter(name=name, tensor_sha256=hashes.tensor_sha256, file_sha256=hashes.sha256, family="sd15",
                    path=made.relative(path), rank=4, alpha=4.0, tags=("old",), size=(n + 1) * 10**6,
                    created_at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=n))
        )  # fmt: skip
    return made


@pytest.fixture
def studio(ws):
    return partial(call_here, ws.home)


def listed(studio, *words):
    code, out, err = studio("--json", "adapters", "list", *words)
    assert code == 0, err
    return [adapter["name"] for adapter in json.loads(out)]


def test_the_list_filters_and_sorts(studio):
    assert listed(studio, "nk") == ["ink 2", "ink 1", "ink 0"]
    assert listed(studio, "--sort", "oldest", "--limit", "2") == ["ink 0", "ink 1"]
    assert listed(studio, "--min-size", "2", "--max-size", "3") == ["ink 2", "ink 1"]
    assert listed(studio, "--since", "2026-01-02", "--until", "2026-01-04") == ["ink 2", "ink 1"]
    assert listed(studio, "--base-family", "sdxl") == []
    assert listed(studio, "--no-favourite", "--tag", "OLD", "--max-rank", "4", "--no-preview") != []
    assert studio("adapters", "list", "--limit", "1")[2] == "3 more; raise --limit or narrow the search.\n"
    code, _, err = studio("adapters", "list", "--since", "soon")
    assert (code, err) == (2, "error: --since: 'soon' is no date. write it as 2026-01-31.\n")


def test_a_filter_is_saved_used_replaced_and_removed(studio):
    assert "it finds 3 now" in studio("adapters", "filters", "save", "inks", "ink")[1]
    assert listed(studio, "--filter", "inks") == ["ink 2", "ink 1", "ink 0"]
    assert listed(studio, "0", "--filter", "inks") == ["ink 0"], "words narrow it"
    assert "it finds 1 now" in studio("adapters", "filters", "save", "inks", "ink", "--min-size", "3")[1]
    assert [f["name"] for f in json.loads(studio("--json", "adapters", "filters", "list")[1])] == ["inks"]
    assert studio("adapters", "filters", "remove", "inks")[0] == 0
    assert studio("adapters", "list", "--filter", "inks")[0] == 2


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [("--file-state", "lost", "file state 'lost': is unknown. use one of new, ok, edited"),
     ("--base-family", "sdx", "family 'sdx': is unknown. use one of sd15"),
     ("--min-rank", 10**20, "min rank: is too large a number. use at most"),
     ("--max-rank", -(10**20), "max rank: is too large a number. use at most")],
)  # fmt: skip
def test_a_filter_that_cannot_be_is_refused_and_not_kept(studio, option, value, words):
    for command in (("list",), ("filters", "save", "odd")):
        code, _, err = studio("adapters", *command, option, value)
        assert (code, err.count("\n")) == (2, 1)
        assert words in err
    assert json.loads(studio("--json", "adapters", "filters", "list")[1]) == []


def test_a_size_without_end_is_a_size(studio):
    assert listed(studio, "--max-size", "inf") == listed(studio, "--max-size", "1e30") == listed(studio)
    assert listed(studio, "--min-size", "inf") == []


def test_several_are_tagged_rated_and_marked(ws, studio):
    assert studio("adapters", "tag", "ink 0", "chalk", "--add", "new", "--remove", "old")[0] == 0
    assert ws.catalog.get(Adapter, "chalk").tags == ("new",)
    assert studio("adapters", "tag", "ink 1", "a", "b")[0] == 0
    assert ws.catalog.get(Adapter, "ink 1").tags == ("a", "b")
    assert studio("adapters", "rate", "ink 0", "ink 1", "4")[0] == 0
    assert ws.catalog.count_adapters(min_rating=4) == 2
    assert studio("adapters", "favourite", "--query", "ink", "--yes")[1] == "3 adapters: a favourite\n"
    assert ws.catalog.count_adapters(favourite=True) == 3
    assert studio("adapters", "favourite", "ink 0", "--off")[0] == 0
    assert ws.catalog.count_adapters(favourite=True) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("chalk:abc", "adapter 'chalk:abc': 'abc' is not a strength. write a number, as chalk:0.8."),
        ("chalk:0.5:abc", "adapter 'chalk:0.5:abc': 'abc' is not a strength. write a number, as chalk:0.8."),
        ("nobody:abc", "adapter 'nobody:abc': does not exist"),
        ("nobody:0.5", "adapter 'nobody': does not exist"),
    ],
)
def test_a_strength_that_is_none_is_said(studio, text, said):
    code, _, err = studio("sample", "--adapter", text, "--prompt", "x", "--out", "pictures")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: {said}")


def test_many_by_search_want_a_word_more(ws, studio):
    code, _, err = studio("adapters", "trash", "--query", "ink")
    assert (code, err) == (
        2,
        "error: search: finds 3 adapters. look at them with `adapters list`, then add --yes.\n",
    )
    assert ws.catalog.count_adapters(trashed=True) == 0
    assert studio("adapters", "trash", "--query", "chalk")[0] == 0, "one needs none"
    assert studio("adapters", "trash", "--query", "ink", "--yes")[0] == 0
    assert ws.catalog.count_adapters(trashed=True) == 4
    assert not list((ws.home / "adapters").glob("*.safetensors"))
    assert studio("adapters", "trash", "--query", "ink", "--yes")[0] == 2


@pytest.mark.parametrize(
    "words",
    [("trash",), ("trash", "ink 0", "--query", "ink"), ("tag", "ink 0"), ("rate", "ink 0", "7"),
     ("rate", "3"), ("export", "ink 0"), ("trash", "ink 0", "nobody"), ("favourite", "--filter", "none")],
)  # fmt: skip
def test_what_is_not_clear_changes_nothing(ws, studio, words):
    before = ws.catalog.list(Adapter)
    code, _, err = studio("adapters", *words)
    assert code == 2
    assert err.startswith("error: ")
    assert ws.catalog.list(Adapter) == before


def test_several_are_exported_and_one_that_fails_is_named(ws, studio, tmp_path):
    ws.catalog.update(Adapter, ws.catalog.get(Adapter, "ink 2").id, name="ink 1")
    (ws.home / "adapters" / "3.safetensors").unlink()
    code, out, err = studio(
        "--json", "adapters", "export", "--query", "old", "--yes", "--out", tmp_path / "out"
    )
    assert code == 1
    assert "of adapter chalk is not there" in err
    report = json.loads(out)
    assert len(report["done"]) == 3
    assert [f["id"] for f in report["failed"]] == [ws.catalog.get(Adapter, "chalk").id]
    files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert files == ["ink-0.safetensors", "ink-1-2.safetensors", "ink-1.safetensors"]
