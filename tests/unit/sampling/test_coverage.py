"""What of an adapter has a place in a base, from headers alone; adapters on the command line."""

from pathlib import Path

import pytest

from registry.errors import BadInput
from registry.records import Adapter, Base
from studio.commands.jobs import _choices
from studio.sampling.coverage import base_weights, coverage
from studio.workspace import Workspace
from tests.support.adapters import make_form, write_run_file
from tests.support.sampling import ALL_MODULES, add_adapter, add_file

ELSEWHERE = "unet.down_blocks.3.resnets.0.conv1"


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "home")


def test_layers_are_counted_and_norms_are_not(ws: Workspace):
    pocket = ws.catalog.get(Base, "pocket")
    whole = add_adapter(ws, "whole", ALL_MODULES)
    assert coverage(ws, whole, pocket) == coverage(ws, whole, pocket, base_weights(ws, pocket))
    assert coverage(ws, whole, pocket).matched == len(ALL_MODULES)
    form = make_form({ALL_MODULES[0]: (8, 4, 3, 3), ELSEWHERE: (8, 8, 3, 3)})
    file = write_run_file(form, ws.home / "adapters" / "p.safetensors")
    partly = add_file(ws, "partly", file)
    found = coverage(ws, partly, pocket)
    assert (found.matched, found.total, found.unmatched, found.complete) == (1, 2, (ELSEWHERE,), False)


@pytest.mark.parametrize("kind", ["hub", "file"])
def test_what_is_not_at_hand_is_not_judged(ws: Workspace, kind: str, tmp_path: Path):
    (tmp_path / "base.safetensors").write_bytes(b"no checkpoint")
    base = Base(name="b", family="sd15", location=str(tmp_path / "base.safetensors"), kind=kind)
    file = write_run_file(make_form({ELSEWHERE: (8, 8, 3, 3)}), ws.home / "adapters" / "p.safetensors")
    found = coverage(ws, add_file(ws, "partly", file), base)
    assert base_weights(ws, base) is None
    assert (found.matched, found.complete) == (1, True)


def test_adapters_with_blocks_and_schedules(ws: Workspace):
    ink, wash = add_adapter(ws, "ink", seed=1), add_adapter(ws, "wash", seed=2)
    made = _choices(ws, ["ink:0.5:0", "wash"], ["wash:MID=0.5"], ["ink:0=0,0.5=1", "wash:1=0.2"])
    assert [(item.id, item.weight, item.text_weight) for item in made] == [
        (ink.id, 0.5, 0.0),
        (wash.id, 1.0, None),
    ]
    assert [dict(item.blocks) for item in made] == [{}, {"MID": 0.5}]
    assert [item.schedule for item in made] == [((0.0, 0.0), (0.5, 1.0)), ((1.0, 0.2),)]
    with pytest.raises(BadInput, match="names no adapter of this call"):
        _choices(ws, ["ink"], ["wash:MID=0"], [])
    with pytest.raises(BadInput, match="is there twice for one adapter"):
        _choices(ws, ["ink"], ["ink:MID=0", "ink:OUT=0"], [])
    with pytest.raises(BadInput, match="adapter 'nobody'"):
        _choices(ws, ["ink"], [], ["nobody:0=1"])
    with pytest.raises(BadInput, match=r"schedule\.0\.1 .*less than or equal to 4"):
        _choices(ws, ["ink"], [], ["ink:0=9"])
    assert ws.catalog.count(Adapter) == 2
