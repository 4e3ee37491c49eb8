"""Exports: what is written, what it says of itself, and what stops it."""

import hashlib
import json
import subprocess
import sys
from datetime import UTC, datetime

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save

from registry.errors import BadInput, StudioError
from registry.formats import export as export_module
from registry.formats import kohya
from registry.formats.export import Sidecar, export_adapter
from registry.formats.header import read_header
from registry.formats.internal import AdapterForm
from registry.formats.metadata import TrainingFacts, for_publication, training_metadata
from registry.hashing import hash_adapter
from tests.support.adapters import TEXT, UNET, make_form, write_run_file

SECRET = "my aunt Agatha in the garden"
RECIPE = {
    "name": "ink",
    "adapter": {"rank": 4, "conv_rank": 2, "conv_alpha": None},
    "optimizer": {"lr": 1e-4, "name": "adamw"},
    "train": {"max_steps": 100, "seed": 7, "resolution": 512, "batch_size": 2, "precision": "fp32"},
    "preview": {"prompts": [SECRET]},
}
FACTS = TrainingFacts(
    name="ink", family="sd15", rank=4, alpha=1.0, created_at=datetime(2026, 11, 23, 12, 0, tzinfo=UTC),
    tensor_sha256="ab" * 32, trigger_words=["inkstyle"], recommended_weight=0.8, base_name="pocket",
    base_hash="cd" * 32, prediction_type="epsilon", run_id="0123456789", step=100, recipe=RECIPE,
    recipe_hash="ef" * 32, dataset_name=SECRET, captions=[f"inkstyle, {SECRET}", "inkstyle, a tree"],
    tags=["drawing"],
)  # fmt: skip


@pytest.fixture
def source(tmp_path):
    return write_run_file(
        make_form(rank=4, alpha=1.0, conv_rank=2, conv_alpha=0.5), tmp_path / "run/adapter.safetensors"
    )


def _tools(report):
    return {tool.tool: tool for tool in report.tools}


def test_auto_is_kohya_and_loads_everywhere(source, tmp_path):
    report = export_adapter(source, tmp_path / "ink", metadata=training_metadata(FACTS))
    assert report.path == str(tmp_path / "ink.safetensors")
    assert (report.layout, report.family, report.dtype) == ("kohya", "sd15", "fp32")
    assert report.matched == report.modules == len(UNET | TEXT)
    assert report.worst_error < 1e-6
    tools = _tools(report)
    assert {name: tool.verdict for name, tool in tools.items()} == {
        "diffusers": "loads", "ComfyUI": "loads", "A1111": "loads", "Forge": "loads", "InvokeAI": "loads",
        "kohya sd-scripts": "partly",
    }  # fmt: skip
    assert tools["kohya sd-scripts"].missing == ("unet.conv_in", "unet.time_embedding.linear_1")
    assert "has no conv_in" in tools["kohya sd-scripts"].note
    header = read_header(tmp_path / "ink.safetensors")
    assert "lora_adapter_metadata" not in header.metadata
    downs = {k.removesuffix(".lora_down.weight") for k in header.tensors if k.endswith(".lora_down.weight")}
    assert {k.removesuffix(".alpha") for k in header.tensors if k.endswith(".alpha")} == downs
    hashes = hash_adapter(tmp_path / "ink.safetensors")
    assert (report.sha256, report.tensor_sha256) == (hashes.sha256, hashes.tensor_sha256)
    assert json.loads(json.dumps(report.to_dict()))["tools"][0]["tool"] == "diffusers"


def test_diffusers_layout_has_alpha_folded_in(source, tmp_path):
    report = export_adapter(source, tmp_path / "ink", "diffusers")
    tensors = load_file(tmp_path / "ink.safetensors")
    form = make_form(rank=4, alpha=1.0, conv_rank=2, conv_alpha=0.5)
    for name, item in form.modules.items():
        np.testing.assert_allclose(
            tensors[f"{name}.lora_B.weight"], item.up * item.alpha / item.rank, rtol=1e-6
        )
    assert "lora_adapter_metadata" not in read_header(tmp_path / "ink.safetensors").metadata
    tools = _tools(report)
    assert tools["diffusers"].verdict == "loads"
    assert tools["ComfyUI"].verdict == "partly"  # all but the UNet's attention, and with the right strength
    assert set(tools["ComfyUI"].missing) == {name for name in UNET if ".to_" in name}
    assert tools["ComfyUI"].worst_error < 1e-6
    assert tools["A1111"].verdict == tools["InvokeAI"].verdict == "no"


def test_alpha_metadata_alone_would_be_wrong_by_alpha_over_rank(source):
    """Why alpha is folded: the run's own file, as ComfyUI reads it."""
    from registry.formats.families import FORMATS
    from registry.formats.load import load_adapter
    from registry.formats.tensors import read_tensors
    from registry.formats.tools import Judge, comfyui_reading

    form, _, header = load_adapter(source, "sd15")
    reading = comfyui_reading(read_tensors(source), header.metadata, FORMATS["sd15"], form.modules)
    judge = Judge(form, 1e-5)
    error = judge.error(
        "unet.mid_block.resnets.0.time_emb_proj", reading.modules["unet.mid_block.resnets.0.time_emb_proj"]
    )
    assert error == pytest.approx(4 / 1.0 - 1, rel=1e-5)  # rank / alpha - 1


def test_peft_folder(source, tmp_path):
    report = export_adapter(source, tmp_path / "ink", "peft", metadata=training_metadata(FACTS))
    assert report.matched == report.modules
    files = {str(p.relative_to(tmp_path / "ink")) for p in (tmp_path / "ink").rglob("*") if p.is_file()}
    assert files == {
        "adapter_model.safetensors", "adapter_config.json", "text_encoder/adapter_model.safetensors",
        "text_encoder/adapter_config.json",
    }  # fmt: skip
    config = json.loads((tmp_path / "ink/adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 4)
    assert config["rank_pattern"]["^conv_in"] == config["alpha_pattern"]["^conv_in"] == 2
    assert config["base_model_name_or_path"] == "pocket"
    assert all(
        k.startswith("base_model.model.")
        for k in read_header(tmp_path / "ink/adapter_model.safetensors").tensors
    )
    assert any("subfolder" in note for note in report.notes)


@pytest.mark.parametrize("layout", ["kohya", "diffusers", "peft"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_what_is_exported_can_be_exported_again(source, tmp_path, layout, dtype):
    first = export_adapter(source, tmp_path / "a", layout, dtype=dtype)
    assert (first.dtype, first.worst_error <= first.tolerance) == (dtype, True)
    if layout == "peft":
        return
    second = export_adapter(tmp_path / "a.safetensors", tmp_path / "b", layout, family="sd15")
    assert second.dtype == dtype
    assert second.worst_error == 0.0


def test_metadata(source, tmp_path):
    export_adapter(source, tmp_path / "ink", metadata=training_metadata(FACTS))
    path = tmp_path / "ink.safetensors"
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    assert metadata["ss_base_model_version"] == "sd_v1"
    assert metadata["ss_v2"] == "False"
    assert (metadata["ss_network_module"], metadata["ss_network_dim"], metadata["ss_network_alpha"]) == (
        "networks.lora", "4", "1",
    )  # fmt: skip
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "2", "conv_alpha": "2"}
    assert json.loads(metadata["ss_tag_frequency"])[SECRET] == {"inkstyle": 2, SECRET: 1, "a tree": 1}
    assert metadata["modelspec.sai_model_spec"] == "1.0.1"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["modelspec.title"] == "ink"
    assert metadata["modelspec.trigger_phrase"] == "inkstyle"
    assert metadata["modelspec.date"] == "2026-11-23T12:00:00+00:00"
    assert json.loads(metadata["studio.recipe"]) == RECIPE
    assert metadata["studio.recipe_hash"] == "ef" * 32
    assert metadata["studio.tensor_sha256"] == "ab" * 32
    tensor_hash = hash_adapter(path).tensor_sha256
    assert metadata["modelspec.hash_sha256"] == "0x" + tensor_hash
    assert metadata["sshs_model_hash"] == tensor_hash
    # kohya's own way: the file as it would be with its ss_ metadata alone
    own = save(load_file(path), {k: v for k, v in metadata.items() if k.startswith("ss_")})
    assert (
        metadata["sshs_model_hash"]
        == hashlib.sha256(own[8 + int.from_bytes(own[:8], "little") :]).hexdigest()
    )
    assert metadata["sshs_legacy_hash"] == hashlib.sha256(own[0x100000:0x110000]).hexdigest()[:8]


def test_publishing_leaves_the_person_s_words_out(source, tmp_path):
    foreign = {
        "training_comment": SECRET,
        "ss_dataset_dirs": f'{{"10_{SECRET}": 1}}',
        "ss_reg_dataset_dirs": SECRET,
    }
    metadata = for_publication(training_metadata(FACTS) | foreign)
    export_adapter(source, tmp_path / "ink", metadata=metadata)
    assert SECRET.encode() not in (tmp_path / "ink.safetensors").read_bytes()
    kept = read_header(tmp_path / "ink.safetensors").metadata
    assert json.loads(kept["studio.recipe"])["train"]["seed"] == 7
    assert kept["modelspec.trigger_phrase"] == "inkstyle"


def test_sidecars(source, tmp_path):
    picture = tmp_path / "preview.png"
    Image.new("RGB", (8, 8), "red").save(picture)
    sidecar = Sidecar(
        trigger_words=("inkstyle", "ink"), weight=0.8, notes="n", description="d", picture=picture
    )
    report = export_adapter(source, tmp_path / "ink-v1.5", sidecar=sidecar)
    assert [f.rpartition("/")[2] for f in report.files] == [
        "ink-v1.5.safetensors", "ink-v1.5.json", "ink-v1.5.png",
    ]  # fmt: skip
    values = json.loads((tmp_path / "ink-v1.5.json").read_text())
    assert values["activation text"] == "inkstyle, ink"
    assert (values["preferred weight"], values["sd version"], values["notes"]) == (0.8, "SD1", "n")
    assert Image.open(tmp_path / "ink-v1.5.png").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("stands", ["ink.safetensors", "ink.json"])
def test_nothing_is_overwritten_unasked(source, tmp_path, stands):
    (tmp_path / stands).write_text("mine")
    with pytest.raises(
        BadInput, match=rf"{stands}: exists already\. choose another name, or add --overwrite"
    ):
        export_adapter(source, tmp_path / "ink", sidecar=Sidecar())
    assert (tmp_path / stands).read_text() == "mine"
    assert export_adapter(source, tmp_path / "ink", sidecar=Sidecar(), overwrite=True).matched


def test_a_folder_of_the_person_s_is_never_replaced(source, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/aunt.jpg").write_text("mine")
    with pytest.raises(BadInput, match="is a folder with other files in it"):
        export_adapter(source, tmp_path / "photos", "peft", overwrite=True)
    assert (tmp_path / "photos/aunt.jpg").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    export_adapter(source, tmp_path / "empty", "peft")
    with pytest.raises(BadInput, match="exists already"):
        export_adapter(source, tmp_path / "empty", "peft")
    assert export_adapter(source, tmp_path / "empty", "peft", overwrite=True).matched


@pytest.mark.parametrize(
    ("out", "layout", "wrong"),
    [
        ("ink.ckpt", "auto", r"ends in \.ckpt"),
        ("ink.safetensors", "peft", "the peft format is a folder"),
        (".", "auto", "is a folder"),
        ("ink", "lycoris", "format 'lycoris': is unknown"),
    ],
)
def test_bad_targets(source, tmp_path, out, layout, wrong):
    with pytest.raises(BadInput, match=wrong):
        export_adapter(source, tmp_path / out, layout)


def test_a_source_that_is_gone_or_unidentified(tmp_path):
    with pytest.raises(BadInput, match="does not exist"):
        export_adapter(tmp_path / "gone.safetensors", tmp_path / "ink")
    narrow = write_run_file(make_form({"unet.conv_in": (8, 4, 3, 3)}), tmp_path / "a.safetensors")
    with pytest.raises(BadInput, match="is of no known family"):
        export_adapter(narrow, tmp_path / "ink")


def test_a_file_that_came_out_wrong_never_gets_its_name(source, tmp_path, monkeypatch):
    write = kohya.write

    def wrong(form: AdapterForm):
        tensors, metadata = write(form)
        tensors["lora_unet_conv_in.lora_up.weight"] = tensors["lora_unet_conv_in.lora_up.weight"] * 1.01
        return tensors, metadata

    monkeypatch.setattr(export_module.kohya, "write", wrong)
    with pytest.raises(StudioError, match=r"would change module unet\.conv_in by 1\.0% in fp32"):
        export_adapter(source, tmp_path / "ink")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_fp16_that_would_lose_the_adapter_is_refused(tmp_path):
    form = make_form({"unet.conv_in": (8, 4, 3, 3)})
    tiny = AdapterForm(
        "sd15", {k: type(v)(v.down, v.up * np.float32(1e-7), v.alpha) for k, v in form.modules.items()}
    )
    source = write_run_file(tiny, tmp_path / "a.safetensors")
    with pytest.raises(StudioError, match="use fp32"):
        export_adapter(source, tmp_path / "ink", dtype="fp16", family="sd15")
    assert export_adapter(source, tmp_path / "ink", dtype="bf16", family="sd15").matched == 1


def test_a_full_disk_leaves_nothing_and_says_so(source, tmp_path):
    """In a process that may not write files of more than 20 kB."""
    code = (
        "import resource, signal, sys; from pathlib import Path; from registry.errors import StudioError\n"
        "from registry.formats.export import export_adapter\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try: export_adapter(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except StudioError as error: print(error)\n"
    )
    (tmp_path / "out").mkdir()
    target = tmp_path / "out/ink.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", code, source, target], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{target}: cannot be written (file too large). free some space and try again.\n"
    assert list((tmp_path / "out").iterdir()) == []
