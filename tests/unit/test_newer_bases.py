"""Bases of SDXL, SD3.5 and FLUX.1: folders, single files, and files that a folder of configs completes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from registry.errors import BadInput
from registry.formats.original import BFL
from registry.records import Base
from studio.base_facts import CONFIGS
from studio.bases import add_base, check_available, detect_base
from studio.workspace import Workspace
from tests.support.bases import save_base
from tests.support.checkpoints import renamed, save_sd35, save_sdxl
from trainers.families import FAMILIES
from trainers.families.base import BaseFiles

CPU = torch.device("cpu")
NEW = ("sdxl", "sd35", "flux1")


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "home")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Toy folders; SDXL with two residual blocks a level, as published."""
    root = tmp_path_factory.mktemp("bases")
    made = {name: save_base(name, root / name) for name in NEW}
    unet: Any = FAMILIES["sdxl"].load_class().tiny()["unet"]
    type(unet).from_config({**unet.config, "layers_per_block": 2}).save_pretrained(made["sdxl"] / "unet")
    clip = next((made["sd35"] / "text_encoder").glob("*.safetensors"))
    values = load_file(clip)  # SD3's CLIP-L projects by the identity, and files leave that out
    save_file(values | {"text_projection.weight": torch.eye(32)}, clip, {"format": "pt"})
    return made


@pytest.fixture
def copy(bases: dict[str, Path], tmp_path: Path):
    """A copy to change."""
    return lambda name: Path(shutil.copytree(bases[name], tmp_path / name))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- folders


@pytest.mark.parametrize(
    ("name", "changes", "variant"),
    [
        ("sdxl", {}, "eps"),
        ("sdxl", {"scheduler/scheduler_config": {"prediction_type": "v_prediction"}}, "v"),
        ("sdxl", {"unet/config": {"in_channels": 9}}, "eps-inpaint"),
        ("sd35", {}, "medium"),
        ("sd35", {"transformer/config": {"dual_attention_layers": []}}, "large"),
        ("flux1", {}, "dev"),
        ("flux1", {"transformer/config": {"guidance_embeds": False}}, "schnell"),
    ],
)
def test_folders_tell_family_and_variant(copy, name, changes, variant):
    folder = copy(name)
    for file, values in changes.items():
        edit(folder / f"{file}.json", **values)
    facts = detect_base(str(folder))
    assert (facts.family, facts.variant, facts.kind, facts.notes) == (name, variant, "folder", ())


@pytest.mark.parametrize("name", NEW)
def test_pipelines_with_the_same_components_are_taken(copy, name):
    folder = copy(name)
    stem = FAMILIES[name].pipeline.removesuffix("Pipeline")
    for middle in ("Img2Img", "Inpaint"):
        edit(folder / "model_index.json", _class_name=f"{stem}{middle}Pipeline")
        assert detect_base(str(folder)).family == name
    edit(folder / "model_index.json", _class_name=f"{stem}ControlNetPipeline")
    with pytest.raises(BadInput, match="ControlNetPipeline, which is not supported"):
        detect_base(str(folder))


DAMAGE: list[tuple[str, Any, str]] = [
    ("sdxl", lambda f: shutil.rmtree(f / "tokenizer_2"), "tokenizer_2: has no tokenizer.json"),
    ("sdxl", lambda f: next((f / "text_encoder_2").glob("*.safetensors")).unlink(), "_2: has no weights"),
    ("sd35", lambda f: edit(f / "text_encoder_3/config.json", vocab_size=5), "the text encoder knows 5"),
    ("flux1", lambda f: edit(f / "transformer/config.json", in_channels=96), "reads 96 values a patch"),
    ("flux1", lambda f: shutil.rmtree(f / "text_encoder_2"), "text_encoder_2: has no weights"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "damage", "wrong"), DAMAGE)
def test_folders_that_cannot_be_bases(copy, name, damage, wrong):
    folder = copy(name)
    damage(folder)
    with pytest.raises(BadInput, match=wrong) as raised:
        detect_base(str(folder))
    assert "\n" not in str(raised.value)


def test_the_given_family_must_be_of_the_architecture(bases):
    assert detect_base(str(bases["flux1"]), family="flux1").family == "flux1"
    with pytest.raises(BadInput, match=r"is FLUX\.1, not Stable Diffusion XL. leave the family out"):
        detect_base(str(bases["flux1"]), family="sdxl")


def test_sd35_may_lack_t5(copy, ws):
    folder = copy("sd35")
    for name in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(folder / name)
    with pytest.raises(BadInput, match="text_encoder_3: has no weights"):
        detect_base(str(folder))
    edit(folder / "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])
    assert add_base(ws, "small", str(folder)).family == "sd35"


def test_a_t5_tokenizer_of_the_old_kind_is_enough(copy):
    folder = copy("flux1")
    shutil.rmtree(folder / "tokenizer_2")
    (folder / "tokenizer_2").mkdir()
    (folder / "tokenizer_2" / "spiece.model").write_bytes(b"x")
    assert detect_base(str(folder)).family == "flux1"


# --- single files


def tensors_of(name: str, *, whole: bool = True) -> dict[str, torch.Tensor]:
    """The tensors that detection looks at."""
    shapes = {
        "sdxl": {
            "model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3),
            "first_stage_model.encoder.conv_in.weight": (8, 3, 3, 3),
            "conditioner.embedders.0.transformer.text_model.x": (2,),
            "conditioner.embedders.1.model.x": (2,),
        },
        "sd35": {
            "model.diffusion_model.joint_blocks.0.x_block.attn.ln_q.weight": (2,),
            "model.diffusion_model.joint_blocks.0.x_block.attn2.qkv.weight": (6, 2),
        },
        "flux1": {"double_blocks.0.img_mod.lin.weight": (2, 2), "img_in.weight": (2, 64),
                  "guidance_in.in_layer.weight": (2, 2)},
    }[name]  # fmt: skip
    rest = {
        "sdxl": {},
        "sd35": {"first_stage_model.x": (2,), "text_encoders.clip_l.x": (2,), "text_encoders.clip_g.x": (2,)},
        "flux1": {"vae.x": (2,), "text_encoders.clip_l.x": (2,), "text_encoders.t5xxl.x": (2,)},
    }[name]
    return {key: torch.zeros(shape) for key, shape in (shapes | (rest if whole else {})).items()}


def saved(tmp_path: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata=metadata or None)
    return path


@pytest.mark.parametrize(("name", "variant"), [("sdxl", "eps"), ("sd35", "medium"), ("flux1", "dev")])
def test_files_tell_family_and_variant(tmp_path, name, variant):
    facts = detect_base(str(saved(tmp_path, tensors_of(name))))
    assert (facts.family, facts.variant, facts.kind) == (name, variant, "file")


def test_variants_of_files(tmp_path):
    flux, sd3, xl = (tensors_of(name) for name in ("flux1", "sd35", "sdxl"))
    del flux["guidance_in.in_layer.weight"]
    assert detect_base(str(saved(tmp_path, flux))).variant == "schnell"
    del sd3["model.diffusion_model.joint_blocks.0.x_block.attn2.qkv.weight"]
    assert detect_base(str(saved(tmp_path, sd3))).variant == "large"
    facts = detect_base(str(saved(tmp_path, xl | {"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)})))
    assert facts.variant == "v"
    assert facts.notes == (
        "it was trained to zero signal: say rescale_betas_zero_snr in the scheduler's config",
    )
    assert detect_base(str(saved(tmp_path, xl, **{"modelspec.prediction_type": "v"}))).variant == "v"
    del sd3["model.diffusion_model.joint_blocks.0.x_block.attn.ln_q.weight"]
    sd3["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"] = torch.zeros(2)
    (note,) = detect_base(str(saved(tmp_path, sd3))).notes
    assert "the one before 3.5" in note


@pytest.mark.parametrize(
    ("name", "missing"),
    [("sd35", "vae, text_encoder, text_encoder_2"), ("flux1", "vae, text_encoder, text_encoder_2")],
)
def test_a_transformer_alone_needs_the_rest(tmp_path, bases, name, missing):
    path = saved(tmp_path, tensors_of(name, whole=False))
    with pytest.raises(BadInput, match=f"lacks {missing} of .*--config DIR with these folders of") as raised:
        detect_base(str(path))
    assert "\n" not in str(raised.value)
    assert detect_base(str(path), str(bases[name])).family == name


@pytest.mark.parametrize(
    ("name", "changes", "wrong"),
    [
        ("sdxl", {"conditioner.embedders.1.model.x": None}, "is the SDXL refiner"),
        ("flux1", {"img_in.weight": (2, 384)}, "reads 384 values a patch, a base of FLUX.1 64"),
        ("flux1", {"img_in.weight": None}, "reads 0 values a patch"),
        ("flux1", {"double_blocks.0.x.weight.absmax": (2,)}, "has weights of 4 bits"),
        ("flux1", {"double_blocks.0.x.scale_weight": (2,)}, "has weights of 8 bits"),
    ],
)
def test_files_that_cannot_be_bases(tmp_path, name, changes, wrong):
    tensors = tensors_of(name)
    for key, shape in changes.items():
        tensors.pop(key, None)
        if shape:
            tensors[key] = torch.zeros(shape)
    with pytest.raises(BadInput, match=wrong):
        detect_base(str(saved(tmp_path, tensors)))


@pytest.mark.parametrize("name", NEW)
def test_tokenizers_alone_are_enough(ws, tmp_path, bases, name):
    """Our configs with the person's tokenizers; SD3.5 without T5 gets none for it."""
    config = tmp_path / "config"
    for tokenizer in FAMILIES[name].tokenizers:
        if tokenizer != "tokenizer_3":
            shutil.copytree(bases[name] / tokenizer, config / tokenizer)
    path = saved(tmp_path, tensors_of(name))
    base = add_base(ws, "file", str(path), config=str(config))
    folder = ws.resolve(base.config)
    made = {file.name for file in folder.iterdir() if file.is_dir()}
    info = FAMILIES[name]
    wanted = {info.denoiser, "vae", "scheduler", *info.text_encoders, *info.tokenizers}
    assert made == wanted - {"text_encoder_3", "tokenizer_3"}
    variant = {"sd35": "medium", "flux1": "dev"}.get(name, "")
    ours = CONFIGS / name / "variants" / variant if variant else CONFIGS / name
    assert (folder / info.denoiser / "config.json").read_text() == (
        ours / info.denoiser / "config.json"
    ).read_text() or name == "sdxl"
    assert check_available(ws, base) == path
    shutil.rmtree(config / "tokenizer_2")
    with pytest.raises(BadInput, match="tokenizer_2: has no tokenizer"):
        add_base(ws, "other", str(path), config=str(config))


# --- loading


def loaded(name: str, base: Base | BaseFiles) -> Any:
    files = base if isinstance(base, BaseFiles) else BaseFiles(base.location, "file", base.config)
    return FAMILIES[name].load_class()(files, dtype=torch.float32, device=CPU)


def same_weights(found: Any, expected: Any) -> bool:
    ours, theirs = found.state_dict(), expected.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["sdxl", "sd35"])
def test_a_single_file_is_the_folder(ws, tmp_path, bases, name):
    """The toy base under its published names comes back through the family's own loader, bit for bit."""
    folder = bases[name]
    writer = save_sdxl if name == "sdxl" else save_sd35
    file = writer(folder, tmp_path / "model.safetensors")
    configs = Path(
        shutil.copytree(folder, tmp_path / "configs", ignore=shutil.ignore_patterns("*model*.safetensors"))
    )
    base = add_base(ws, "file", str(file), config=str(configs))
    assert (base.family, base.kind) == (name, "file")
    from_file, from_folder = loaded(name, base), loaded(name, BaseFiles(str(folder)))
    for part in (FAMILIES[name].denoiser, "vae", *FAMILIES[name].text_encoders):
        assert same_weights(from_file.part(part), from_folder.part(part)), part
    found, expected = (family.encode_text(["a"]) for family in (from_file, from_folder))
    for key in expected:  # in another memory order, so not to the last bit
        torch.testing.assert_close(found[key], expected[key])
    assert from_file.component_hash("vae") == from_file.component_hash("text_encoder")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_what_a_file_lacks_comes_from_its_folder(ws, tmp_path, bases, prefix):
    folder = bases["sd35"]
    file = save_sd35(folder, tmp_path / "model.safetensors", whole=False, prefix=prefix)
    configs = Path(shutil.copytree(folder, tmp_path / "configs"))
    shutil.rmtree(configs / "transformer")
    (configs / "transformer").mkdir()
    shutil.copy(folder / "transformer" / "config.json", configs / "transformer")
    base = add_base(ws, "file", str(file), config=str(configs))
    from_file, from_folder = loaded("sd35", base), loaded("sd35", BaseFiles(str(folder)))
    for part in ("transformer", "vae", "text_encoder", "text_encoder_3"):
        assert same_weights(from_file.part(part), from_folder.part(part)), part
    assert from_file.component_hash("vae") == from_folder.component_hash("vae")
    assert from_file.component_hash("vae") != from_file.component_hash("transformer")
    vae = next((configs / "vae").glob("*.safetensors"))
    values = load_file(vae)
    save_file({key: value + 1 for key, value in values.items()}, vae)
    assert add_base(ws, "other", str(file), config=str(configs)).weight_hash != base.weight_hash


def test_a_file_that_the_converter_does_not_understand_is_one_line(tmp_path, bases):
    """diffusers divides the single blocks of FLUX.1 at the true width of 3072 only."""
    tensors = renamed(load_file(next((bases["flux1"] / "transformer").glob("*.safetensors"))), BFL, "")
    path = saved(tmp_path, {key: value.contiguous() for key, value in tensors.items()})
    family = loaded("flux1", BaseFiles(str(path), "file", str(bases["flux1"])))
    with pytest.raises(BadInput, match="its transformer cannot be loaded") as raised:
        _ = family.denoiser
    assert "\n" not in str(raised.value)
    assert family.part("vae") is not None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("guidance", [True, False])
def test_published_names_of_flux_at_true_width(guidance):
    """diffusers' converter finds every tensor of one double and one single block, each of its shape."""
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    config = json.loads((CONFIGS / "flux1/variants/dev/transformer/config.json").read_text())
    with torch.device("meta"):
        model: Any = FluxTransformer2DModel.from_config(
            config | {"num_layers": 1, "num_single_layers": 1, "guidance_embeds": guidance}
        )
    values = model.state_dict()
    made = convert_flux_transformer_checkpoint_to_diffusers(renamed(values, BFL, "model.diffusion_model."))
    assert {k: v.shape for k, v in made.items()} == {k: v.shape for k, v in values.items()}


@pytest.mark.parametrize(
    ("config", "counts"),
    # Parameter counts of the published models.
    [
        ("sdxl/unet", 2_567_463_684), ("sdxl/text_encoder_2", 694_659_840),
        ("sd35/variants/large/transformer", 8_056_627_520),
        ("sd35/variants/medium/transformer", 2_243_171_520),
        ("sd35/vae", 83_819_683), ("sd35/text_encoder", 123_650_304), ("sd35/text_encoder_3", 4_762_310_656),
        ("flux1/variants/dev/transformer", 11_901_408_320),
        ("flux1/variants/schnell/transformer", 11_891_178_560), ("flux1/vae", 83_819_683),
    ],
)  # fmt: skip
def test_shipped_configs_make_the_published_models(config, counts):
    import diffusers
    import transformers

    values = json.loads((CONFIGS / config / "config.json").read_text())
    with torch.device("meta"):
        if name := values.get("_class_name"):
            model: Any = getattr(diffusers, name).from_config(values)
        else:
            cls: Any = getattr(transformers, values["architectures"][0])
            model = cls(cls.config_class(**values))
    assert sum(parameter.numel() for parameter in model.parameters()) == counts
