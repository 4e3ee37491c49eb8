"""Bases: what is found out from folders and headers, what is refused, and that single files really load."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from registry.errors import BadInput, NotFound, StudioError
from registry.records import Base, Run, RunState
from studio.base_facts import CONFIGS
from studio.bases import add_base, base_path, check_available, detect_base, list_bases, remove_base
from studio.workspace import Workspace
from tests.support.bases import save_base
from tests.support.checkpoints import save_checkpoint
from trainers.families import FAMILIES
from trainers.families.base import BaseFiles

POCKET = Path(__file__).parents[2] / "studio" / "pocket" / "model"
WIDTHS = {"sd15": 768, "sd21": 1024}


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "home")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real SD1.5 at toy size."""
    return save_base("sd15", tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny, tmp_path / "base"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- folders


@pytest.mark.parametrize("family", WIDTHS)
def test_the_text_width_tells_the_family(folder: Path, family: str):
    edit(folder / "unet" / "config.json", cross_attention_dim=WIDTHS[family])
    facts = detect_base(str(folder))
    assert (facts.family, facts.kind, facts.reason) == (family, "folder", f"text width {WIDTHS[family]}")


@pytest.mark.parametrize(
    ("prediction", "channels", "variant"),
    [
        ("epsilon", 4, "eps"),
        ("v_prediction", 4, "v"),
        ("epsilon", 9, "eps-inpaint"),
        ("v_prediction", 9, "v-inpaint"),
    ],
)
def test_prediction_and_channels_make_the_variant(folder: Path, prediction: str, channels: int, variant: str):
    edit(folder / "scheduler" / "scheduler_config.json", prediction_type=prediction)
    edit(folder / "unet" / "config.json", in_channels=channels)
    assert detect_base(str(folder)).variant == variant


def test_toy_widths_fall_back_on_the_prediction_and_say_so():
    facts = detect_base(str(POCKET))
    assert (facts.family, facts.variant, facts.reason) == ("sd15", "eps", "predicts eps")
    assert facts.notes == ("text width 96 is of no known family: taken as Stable Diffusion 1.5",)


def test_the_family_can_be_given_where_there_is_room(folder: Path):
    edit(folder / "unet" / "config.json", cross_attention_dim=40)
    assert detect_base(str(folder), family="sd21").family == "sd21"
    with pytest.raises(BadInput, match="family 'sd99': is not known"):
        detect_base(str(folder), family="sd99")
    edit(folder / "unet" / "config.json", cross_attention_dim=1024)
    with pytest.raises(BadInput, match=r"1024, which is Stable Diffusion 2\.1, not Stable Diffusion 1\.5"):
        detect_base(str(folder), family="sd15")


def rename_weights(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


DAMAGE: list[tuple[Any, str]] = [
    (lambda f: (f / "model_index.json").unlink(), "has no model_index.json"),
    (lambda f: (f / "model_index.json").write_text("{"), "is not JSON"),
    (lambda f: edit(f / "model_index.json", _class_name="FluxReduxPipeline"), "holds a FluxReduxPipeline"),
    (lambda f: (f / "unet" / "custom.py").write_text("x"), r"holds code \(unet/custom.py\)"),
    (rename_weights, "weights of its unet as a pickle only, which can run code"),
    (lambda f: next((f / "vae").glob("*.safetensors")).unlink(), r"vae: has no weights"),
    (lambda f: shutil.rmtree(f / "tokenizer"), "tokenizer: has no tokenizer.json"),
    (lambda f: edit(f / "text_encoder" / "config.json", vocab_size=5), "tokens, the text encoder knows 5"),
    (lambda f: (f / "unet" / "config.json").unlink(), "config.json: is missing"),
    (lambda f: edit(f / "unet" / "config.json", in_channels=8), "a UNet with 8 input channels"),
    (lambda f: edit(f / "scheduler" / "scheduler_config.json", prediction_type="x"), "predicts 'x'"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "wrong"), DAMAGE)
def test_folders_that_cannot_be_bases(folder: Path, damage: Any, wrong: str):
    damage(folder)
    with pytest.raises(BadInput, match=wrong) as raised:
        detect_base(str(folder))
    assert "\n" not in str(raised.value)
    assert raised.value.do


def test_an_adapter_folder_is_sent_elsewhere(tmp_path: Path):
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"")
    with pytest.raises(BadInput, match="holds an adapter, not a base"):
        detect_base(str(tmp_path))


def test_a_pickle_beside_the_weights_is_mentioned(folder: Path):
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04")
    notes = detect_base(str(folder)).notes
    assert "unet/diffusion_pytorch_model.bin is a pickle and will not be read" in notes


# --- single files


CONV = "model.diffusion_model.input_blocks.0.0.weight"
TO_K = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
CLIP = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
VAE = "first_stage_model.encoder.conv_in.weight"


def checkpoint() -> dict[str, torch.Tensor]:
    """The tensors that detection looks at."""
    shapes = {CONV: (8, 4, 3, 3), TO_K: (8, 768), VAE: (8, 3, 3, 3), CLIP: (9, 8)}
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def saved(tmp_path: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata=metadata or None)
    return path


@pytest.mark.parametrize(("family", "variant"), [("sd15", "eps"), ("sd21", "v")])
def test_a_file_tells_its_family_by_the_width_of_its_text(tmp_path: Path, family: str, variant: str):
    tensors = checkpoint() | {TO_K: torch.zeros(8, WIDTHS[family])}
    facts = detect_base(str(saved(tmp_path, tensors)))
    assert (facts.family, facts.variant, facts.kind) == (family, variant, "file")
    said = f"the file does not say what it predicts; taken as {variant}, usual for its family"
    assert facts.notes == (said,)


def test_a_file_may_say_what_it_predicts(tmp_path: Path, tiny: Path):
    path = saved(tmp_path, checkpoint(), **{"modelspec.prediction_type": "v"})
    facts = detect_base(str(path))
    assert (facts.family, facts.variant, facts.notes) == ("sd15", "v", ())
    assert detect_base(str(path), str(tiny)).variant == "eps"  # the configs are what will be used


def test_toy_files_go_by_their_text_encoder(tmp_path: Path):
    tensors = checkpoint() | {TO_K: torch.zeros(8, 40), CONV: torch.zeros(8, 9, 3, 3)}
    assert detect_base(str(saved(tmp_path, tensors))).family == "sd15"
    tensors["cond_stage_model.model.token_embedding.weight"] = tensors.pop(CLIP)
    facts = detect_base(str(saved(tmp_path, tensors)))
    assert (facts.family, facts.variant) == ("sd21", "v-inpaint")


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"lora_unet_x.lora_down.weight": 1}, "is an adapter, not a base"),
        ({"conditioner.embedders.0.x": 1}, "is the SDXL refiner"),
        ({"double_blocks.0.x.absmax": 1}, "has weights of 4 bits"),
        ({"transformer_blocks.0.attn.add_q_proj.weight": 1}, "is one component of a diffusers folder"),
        ({"control_model.x": 1}, "is a ControlNet"),
        ({CONV: 0}, "is no Stable Diffusion checkpoint"),
        ({VAE: 0}, "lacks vae of Stable Diffusion 1.5"),
    ],
)
def test_files_that_cannot_be_bases(tmp_path: Path, changes: dict[str, int], wrong: str):
    tensors = checkpoint()
    for name, keep in changes.items():
        tensors.pop(name, None)
        if keep:
            tensors[name] = torch.zeros(2)
    with pytest.raises(BadInput, match=wrong):
        detect_base(str(saved(tmp_path, tensors)))


@pytest.mark.parametrize("name", ["model.ckpt", "model.bin", "model.safetensors"])
def test_pickles_are_refused_by_name_and_by_content(tmp_path: Path, name: str):
    torch.save({"a": torch.zeros(2)}, tmp_path / name)
    with pytest.raises(BadInput, match="can run code; not loaded"):
        detect_base(str(tmp_path / name))


@pytest.mark.parametrize("location", ["/nowhere", "x" * 300])
def test_what_is_not_there(location: str):
    with pytest.raises(NotFound):
        detect_base(location)


# --- in the workspace


def test_the_pocket_base_is_always_there(ws: Workspace):
    builtin = {base.name: base for base in list_bases(ws)}
    assert all(base.builtin for base in builtin.values())
    pocket = builtin["pocket"]
    assert base_path(ws, pocket) == check_available(ws, pocket) == POCKET
    with pytest.raises(BadInput, match="base pocket: is part of the program"):
        remove_base(ws, "pocket")


def test_adding_showing_and_removing(ws: Workspace, folder: Path):
    base = add_base(ws, "mine", str(folder))
    assert (base.kind, base.location, base.family, base.variant) == ("folder", str(folder), "sd15", "eps")
    assert len(base.weight_hash) == 64
    assert [b.name for b in list_bases(ws) if not b.builtin] == ["mine"]
    assert base_path(ws, base) == folder
    with pytest.raises(BadInput, match="base 'mine': exists already"):
        add_base(ws, "mine", str(folder))
    assert remove_base(ws, "mine").id == base.id
    assert folder.is_dir()
    assert ws.catalog.find(Base, "mine") is None


def test_the_hash_follows_the_weights_not_the_place(ws: Workspace, folder: Path, tmp_path: Path):
    first = add_base(ws, "a", str(folder))
    moved = add_base(ws, "b", str(shutil.copytree(folder, tmp_path / "moved")))
    assert first.weight_hash == moved.weight_hash
    unet = tmp_path / "moved" / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(unet.read_bytes())
    content[-1] ^= 1
    unet.write_bytes(bytes(content))
    assert add_base(ws, "c", str(tmp_path / "moved")).weight_hash != first.weight_hash


def test_a_base_inside_the_workspace_moves_with_it(ws: Workspace, tiny: Path, tmp_path: Path):
    shutil.copytree(tiny, ws.home / "bases" / "mine")
    assert add_base(ws, "mine", str(ws.home / "bases" / "mine")).location == "bases/mine"
    ws.catalog.close()
    moved = Workspace.open(Path(shutil.move(ws.home, tmp_path / "elsewhere")))
    assert check_available(moved, moved.catalog.get(Base, "mine")) == moved.home / "bases" / "mine"


def test_a_base_that_went_away_is_refused_before_a_run(ws: Workspace, folder: Path):
    base = add_base(ws, "mine", str(folder))
    assert check_available(ws, base) == folder
    folder.rename(folder.with_name("gone"))
    with pytest.raises(NotFound, match=f"base mine: is no longer at {folder}"):
        check_available(ws, base)
    folder.with_name("gone").rename(folder)
    rename_weights(folder)
    with pytest.raises(BadInput, match="as a pickle only"):
        check_available(ws, base)


def test_a_base_in_use_stays(ws: Workspace, folder: Path):
    base = add_base(ws, "mine", str(folder))
    run = Run(
        name="r", family="sd15", base_id=base.id, dataset_id="d", recipe={}, recipe_hash="", dataset_hash="",
        base_hash="", seed=0, steps=1, state=RunState.RUNNING,
    )  # fmt: skip
    run = ws.catalog.add(run)
    with pytest.raises(BadInput, match=f"base mine: is being used by run r \\({run.id}\\)"):
        remove_base(ws, "mine")
    ws.catalog.update(Run, run.id, state=RunState.FINISHED)
    with pytest.raises(BadInput, match="is used by 1 run"):
        remove_base(ws, "mine")


def test_what_is_neither_here_nor_on_the_hub_is_one_line(ws: Workspace):
    with pytest.raises(StudioError) as raised:
        add_base(ws, "far", "nobody/some-model")
    assert "neither a folder or file here, nor can the hub be reached" in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(BadInput, match="location: is empty"):
        add_base(ws, "far", " ")


# --- configs of single files


@pytest.mark.parametrize(
    ("family", "counts"),
    # Parameter counts of the published models: UNet, VAE, text encoder.
    [("sd15", (859_520_964, 83_653_863, 123_060_480)), ("sd21", (865_910_724, 83_653_863, 340_387_840))],
)
def test_shipped_configs_make_the_published_models(family: str, counts: tuple[int, ...]):
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    root = CONFIGS / family
    with torch.device("meta"):
        models = (
            UNet2DConditionModel.from_config(json.loads((root / "unet" / "config.json").read_text())),
            AutoencoderKL.from_config(json.loads((root / "vae" / "config.json").read_text())),
            CLIPTextModel(CLIPTextConfig(**json.loads((root / "text_encoder" / "config.json").read_text()))),
        )
    assert tuple(sum(p.numel() for p in model.parameters()) for model in models) == counts


def test_a_single_file_needs_a_tokenizer(ws: Workspace, tmp_path: Path):
    path = saved(tmp_path, checkpoint())
    with pytest.raises(BadInput, match="brings no tokenizer"):
        add_base(ws, "file", str(path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="empty: has no tokenizer"):
        add_base(ws, "file", str(path), config=str(tmp_path / "empty"))
    with pytest.raises(NotFound, match="is not a folder"):
        add_base(ws, "file", str(path), config=str(tmp_path / "nowhere"))
    assert all(base.builtin for base in list_bases(ws))


@pytest.mark.parametrize("inner", [True, False])
def test_a_tokenizer_alone_is_enough(ws: Workspace, tmp_path: Path, tiny: Path, inner: bool):
    path = saved(tmp_path, checkpoint(), **{"modelspec.prediction_type": "v"})
    config = tmp_path / "config"
    shutil.copytree(tiny / "tokenizer", config / "tokenizer" if inner else config)
    base = add_base(ws, "file", str(path), config=str(config))
    assert base.config.startswith("bases/sd15-")
    folder = ws.resolve(base.config)
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "v_prediction"
    copied, given = (place / "tokenizer" / "tokenizer.json" for place in (folder, tiny))
    assert copied.read_bytes() == given.read_bytes()
    assert check_available(ws, base) == path
    shutil.rmtree(folder)
    with pytest.raises(NotFound, match="has lost its configs"):
        check_available(ws, base)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_single_file_loads_as_what_it_was(ws: Workspace, tiny: Path, tmp_path: Path, part: str):
    """The toy base under its original names comes back through the family's own loader, bit for bit."""
    file = save_checkpoint(tiny, tmp_path / "model.safetensors")
    base = add_base(ws, "file", str(file), config=str(tiny))
    assert (base.family, base.variant, base.kind) == ("sd15", "eps", "file")
    config = str(ws.resolve(base.config))
    load = FAMILIES["sd15"].load_class()
    options: dict[str, Any] = {"dtype": torch.float32, "device": torch.device("cpu")}
    single = load(BaseFiles(str(base_path(ws, base)), "file", config), **options).part(part).state_dict()
    whole = load(BaseFiles(str(tiny)), **options).part(part).state_dict()
    assert single.keys() == whole.keys()
    assert all(torch.equal(single[name], value) for name, value in whole.items())
