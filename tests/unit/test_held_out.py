"""Which pictures are held out: how many, always the same ones, and never the last of a kind."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from registry.errors import BadInput
from tests.support.runs import recipe
from trainers.held_out import held_out, split, teaching
from trainers.plan import Geometry, Item
from trainers.recipe import load_frozen, load_recipe, thaw
from trainers.rundir import ManifestItem


def of(count: int, **changes: object) -> frozenset[str]:
    """What is held out of `count` pictures with captions of their own."""
    keys = {name.replace("__", "."): value for name, value in changes.items()}
    return held_out(recipe(keys), {f"p{n}": f"picture {n}" for n in range(count)})


@pytest.mark.parametrize(("count", "expected"), [(1, 0), (39, 0), (40, 4), (79, 7), (80, 8), (1000, 8)])
def test_unasked_a_tenth_of_many_and_none_of_few(count: int, expected: int):
    assert len(of(count)) == expected


def test_as_many_as_asked_for_and_not_more_than_half():
    assert len(of(5, checkpoints__held_out=2)) == 2
    assert of(100, checkpoints__held_out=0) == frozenset()
    assert of(5, checkpoints__held_out=2, checkpoints__keep_best=False) == frozenset()
    with pytest.raises(BadInput, match=r"checkpoints.held_out: is 3 of 5 different pictures, more than half"):
        of(5, checkpoints__held_out=3)


def test_runs_on_the_same_pictures_hold_out_the_same():
    """Whatever their seed; more of them are the same and others."""
    assert of(60) == of(60, train__seed=99)
    assert of(60, checkpoints__held_out=3) < of(60, checkpoints__held_out=6) == of(60)
    assert of(60) != frozenset(f"p{n}" for n in range(6))  # not the first ones


def test_the_last_picture_of_a_kind_is_trained_on():
    """Captions stand for kinds where they are shared; a new word needs a picture, too."""
    shared = {f"c{n}": "a cat" for n in range(5)} | {"d": "a dog", "b": "a bird"}
    for seed in range(3):
        asked = recipe({"checkpoints.held_out": 3, "train.seed": seed})
        assert held_out(asked, shared) < shared.keys() - {"d", "b"}
    two = {"a": "one", "b": "one", "c": "two", "d": "two"}
    left = two.keys() - held_out(recipe({"checkpoints.held_out": 2}), two)
    assert {two[picture] for picture in left} == {"one", "two"}
    prose = {f"p{n}": f"sentence {n}" for n in range(6)} | {"w": "the only zork"}
    asked = recipe({"checkpoints.held_out": 3, "tokens.words": ("zork",)})
    assert "w" not in held_out(asked, prose)


def item(number: int, **fields: object) -> Item:
    source = ManifestItem(image=f"{number}.png", pixel_hash=f"p{number}", width=40, height=40, caption="")
    return Item(number, replace(source, **fields), Geometry((40, 40), (0, 0), (32, 32)))


def test_every_size_and_copy_of_a_picture_is_held_out_and_priors_stay():
    items = [item(n) for n in range(6)]
    items += [item(n + 6, pixel_hash=f"p{n}") for n in range(6)]  # at another size
    items += [item(12, role="class"), item(13, pixel_hash="p2", role="regularisation")]
    trained, held = split(recipe({"checkpoints.held_out": 2}), items)
    assert len({i.source.pixel_hash for i in held}) == 2
    assert len(held) == 4
    assert not {i.source.pixel_hash for i in held} & {i.source.pixel_hash for i in trained}
    assert [i.index for i in trained] == sorted(i.index for i in trained)
    assert {"p2", "p12"} & teaching(i.source for i in items).keys() == set()  # shown as priors


def test_a_run_from_before_goes_on_with_all_its_pictures(tmp_path: Path):
    old = recipe().model_dump(mode="json")
    del old["checkpoints"]["held_out"]
    assert thaw(old).checkpoints.held_out == 0
    assert thaw(recipe().model_dump(mode="json")) == recipe()
    frozen = tmp_path / "recipe.json"
    frozen.write_text(json.dumps(old))
    assert load_frozen(frozen).checkpoints.held_out == 0
    frozen.write_text(recipe().model_dump_json())
    assert load_frozen(frozen).checkpoints.held_out is None
    with pytest.raises(BadInput, match="recipe"):
        thaw([])
    toml = tmp_path / "mine.toml"
    toml.write_text('preset = "pocket-style"\n[checkpoints]\nheld_out = "auto"\n')
    assert load_recipe(toml).checkpoints.held_out is None
