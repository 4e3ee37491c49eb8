"""What of an adapter has a place in a base, from headers alone; adapters on the command line."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from registry.errors import BadInput
from registry.records import Adapter, Base
from studio.commands.jobs import _choices
from studio.sampling.coverage import base_weights, coverage, require_places
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


SIDES = {
    "sd15": ("pocket", "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "96 -> 96"),
    "sdxl": ("pocket-xl", "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "96 -> 96"),
    "sd35": ("pocket-sd35", "transformer.transformer_blocks.0.attn.to_q", "128 -> 128"),
    "flux1": ("pocket-flux", "transformer.transformer_blocks.0.attn.to_q", "128 -> 128"),
}


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("family", SIDES)
def test_an_adapter_of_other_sides_is_refused_at_the_door(ws: Workspace, family: str, partial: bool):
    name, module, sides = SIDES[family]
    shapes = {module: (3072, 3072), f"{module.replace('.0.', '.77.')}": (3072, 3072)}
    form = make_form(shapes, family=family)
    real = add_file(ws, "real", write_run_file(form, ws.home / "adapters" / "r.safetensors"), family)
    base = ws.catalog.get(Base, name)
    said = f"adapter real: does not fit base {name}: {module} is 3072 -> 3072 in the adapter and {sides}"
    with pytest.raises(BadInput, match=said):
        require_places(ws, [real], base, partial=partial)
    weights = base_weights(ws, base)
    assert weights is not None
    form = make_form({module: weights.shape(module)}, family=family)
    fits = add_file(ws, "fits", write_run_file(form, ws.home / "adapters" / "s.safetensors"), family)
    require_places(ws, [fits], base, partial=partial)


@pytest.mark.parametrize("rows", [384, 380])
def test_a_layer_that_fuses_several_has_the_rows_of_all(ws: Workspace, rows: int):
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    file = ws.home / "adapters" / "qkv.safetensors"
    tensors = {f"{name}.lora_down.weight": (4, 128), f"{name}.lora_up.weight": (rows, 4), f"{name}.alpha": ()}
    save_file({key: np.ones(shape, np.float32) for key, shape in tensors.items()}, file)
    adapter, base = add_file(ws, "fused", file, "flux1"), ws.catalog.get(Base, "pocket-flux")
    with nullcontext() if rows == 384 else pytest.raises(BadInput, match="128 -> 380 in the adapter and 128"):
        require_places(ws, [adapter], base)


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
