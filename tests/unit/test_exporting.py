"""An export that converts, from the workspace: whose base, which numbers, and what goes into the file."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as Pixels

from registry.errors import BadInput
from registry.formats.factors import change_of
from registry.formats.header import read_header
from registry.formats.load import load_adapter
from registry.formats.tensors import save
from registry.hashing import hash_adapter
from registry.ids import new_id
from registry.records import Adapter, Base
from studio.adapters import export
from studio.exporting import THUMBNAIL, conversion
from studio.workspace import Workspace

PATH = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
NAME, MODULE = "lora_unet_" + PATH.replace(".", "_"), f"unet.{PATH}"


@pytest.fixture
def ws(tmp_path):
    return Workspace.open(tmp_path / "home")


def noise(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def registered(ws, parts, method, **more):
    """An adapter of one module on the pocket base, which is 32 wide there."""
    path = ws.home / "adapters" / f"{method}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save(path, {f"{NAME}.{part}": value for part, value in parts.items()}, {})
    hashes = hash_adapter(path)
    record = Adapter(
        name=method, tensor_sha256=hashes.tensor_sha256, file_sha256=hashes.sha256, path=ws.relative(path),
        family="sd15", method=method, origin="import", **more,
    )  # fmt: skip
    return ws.catalog.register_adapter(record)[0]


def dora(ws, **more):
    parts = {"lora_down.weight": noise(2, 32), "lora_up.weight": noise(32, 2)}
    return registered(ws, parts | {"dora_scale": np.abs(noise(32, 1))}, "dora", **more)


def test_a_dora_becomes_lora_by_its_own_base_or_the_named_one(ws, tmp_path):
    base = ws.catalog.get(Base, "pocket")
    adapter = dora(ws)
    for named in ("pocket", ""):
        if not named:
            ws.catalog.update(Adapter, adapter.id, base_id=base.id)
        settings = conversion(ws, "dora", "lora", max_error=1e-4, base=named)
        out = tmp_path / f"{named or 'own'}.safetensors"
        report = export(ws, "dora", "diffusers", out, convert=settings)
        assert 0 < report.converted["worst_error"] <= 1e-4 or report.converted["ranks"] == {"32": 1}
        form, _, _ = load_adapter(ws.home / "adapters/dora.safetensors")
        wanted = change_of(form.others[MODULE], settings.weights.read(MODULE))
        got, _, _ = load_adapter(out)
        error = np.linalg.norm(got.delta(MODULE) - wanted) / np.linalg.norm(wanted)
        assert error < 2e-4


@pytest.mark.parametrize(
    ("method", "numbers", "wrong"),
    [
        ("", {"rank": 4}, "say how to convert. add --convert lora"),
        ("", {"base": "pocket"}, "say how to convert"),
        ("loha", {}, "conversion 'loha': is unknown. use lora"),
        ("lora", {"rank": 9999}, "rank 9999: is not between"),
        ("lora", {"base": "nothing"}, "nothing"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(ws, method, numbers, wrong):
    dora(ws)
    with pytest.raises(BadInput, match=wrong):
        conversion(ws, "dora", method, **numbers)
    assert conversion(ws, "dora", "") is None


def test_thumbnail_and_licence_are_in_the_file_and_the_thumbnail_only_if_wanted(ws, tmp_path):
    parts = {"lora_down.weight": noise(2, 32), "lora_up.weight": noise(32, 2)}
    preview = ws.home / "adapters" / "p.png"
    preview.parent.mkdir(exist_ok=True)
    Pixels.new("RGB", (900, 600), (10, 120, 200)).save(preview)
    registered(ws, parts, "lora", preview=ws.relative(preview), licence="CC-BY-4.0")
    export(ws, "lora", "kohya", tmp_path / "a.safetensors", publish=True)
    metadata = read_header(tmp_path / "a.safetensors").metadata
    assert metadata["modelspec.license"] == "CC-BY-4.0"
    kind, data = metadata[THUMBNAIL].split(",", 1)
    assert kind == "data:image/jpeg;base64"
    with Pixels.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert max(picture.size) == 256
    export(ws, "lora", "kohya", tmp_path / "b.safetensors", thumbnail=False)
    assert THUMBNAIL not in read_header(tmp_path / "b.safetensors").metadata


def test_no_export_goes_over_the_file_of_an_adapter(ws, tmp_path):
    parts = {"lora_down.weight": noise(2, 32), "lora_up.weight": noise(32, 2)}
    own = ws.home / "adapters" / "lora.safetensors"
    adapter = registered(ws, parts, "lora")
    kept = own.read_bytes()
    (tmp_path / "linked").symlink_to(own.parent)
    for place in (own, own.with_suffix(""), own.parent, tmp_path / "linked" / "lora.safetensors"):
        with pytest.raises(BadInput, match=r"is the file of adapter lora\. choose another name"):
            export(ws, "lora", "diffusers", place, dtype="fp16", overwrite=True)
    assert own.read_bytes() == kept
    out = tmp_path / "out.safetensors"
    export(ws, "lora", "kohya", out)
    ws.catalog.add(replace(adapter, id=new_id(), name="taken in", tensor_sha256="a" * 64, path=str(out)))
    export(ws, "lora", "kohya", out, overwrite=True)
    loop = tmp_path / "loop.safetensors"
    loop.symlink_to(loop)
    with pytest.raises(BadInput, match="exists already"):
        export(ws, "lora", "kohya", loop)
    with pytest.raises(BadInput, match="is a name that is not UTF-8"):
        export(ws, "lora", "kohya", tmp_path / "a\udcff.safetensors")
    assert not (tmp_path / "a\udcff.safetensors").exists()


def test_no_peft_export_replaces_the_folder_of_an_adapter(ws, tmp_path):
    adapter = registered(ws, {"lora_down.weight": noise(2, 32), "lora_up.weight": noise(32, 2)}, "lora")
    folder = tmp_path / "mine" / "text_encoder"
    folder.mkdir(parents=True)
    original = ws.resolve(adapter.path).rename(folder / "adapter_model.safetensors")
    ws.catalog.update(Adapter, adapter.id, path=str(original))
    with pytest.raises(BadInput, match=r"is the file of adapter lora"):
        export(ws, "lora", "peft", tmp_path / "mine", overwrite=True)
    assert original.exists()
