"""Norms and biases through merge, resize and bake: carried exactly, or refused with the reason."""

import numpy as np
import pytest

from registry.errors import BadInput
from registry.formats import diffusers, reading
from registry.formats.export import export_adapter
from registry.formats.internal import AdapterForm
from registry.formats.load import load_adapter
from registry.formats.operations.bake import bake
from registry.formats.operations.merge import Ingredient, MergeSettings, merge
from registry.formats.operations.ranks import RankRule
from registry.formats.operations.resize import resize
from registry.formats.operations.sources import BaseWeights
from registry.formats.operations.strength import make_strength
from registry.formats.operations.vectors import norms_of
from registry.formats.operations.xray import changes_of, xray
from registry.formats.rows import FullFactors
from registry.formats.tensors import read_tensors, save
from registry.records import Adapter
from studio.adapters import export
from studio.operations import Use
from studio.operations import merge as merge_in
from tests.support.adapters import make_form
from tests.support.bases import save_base
from tests.support.checkpoints import save_sd35, save_sdxl
from tests.support.sampling import add_file
from trainers.families import FAMILIES

LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"  # which has a bias
NO_BIAS = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
NORM = "unet.down_blocks.0.attentions.0.transformer_blocks.0.norm1"
GROUP_NORM = "unet.mid_block.resnets.0.norm1"
TEXT_NORM = "text_encoder.text_model.encoder.layers.0.layer_norm2"
TEXT = "text_encoder.text_model.encoder.layers.0.mlp.fc1"


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def form_of(seed, sides=None):
    """A LoRA with norms and biases, for the toy SD1.5; `sides` of its vectors by module."""
    sides = sides or {LAYER: 32, NORM: 32}
    plain = make_form({LAYER: (32, 32), NO_BIAS: (32, 32)}, seed=seed)
    norms = {m: FullFactors(noise(n, seed=seed + 5), "norm") for m, n in sides.items() if "norm" in m}
    biases = {m: noise(n, seed=seed + 6) for m, n in sides.items()}
    return AdapterForm("sd15", plain.modules, norms, biases=biases)


@pytest.mark.parametrize("settings", [MergeSettings(), MergeSettings("svd", RankRule(3))])
def test_a_merge_adds_them(settings):
    a, b = form_of(0), form_of(1)
    parts = [Ingredient("a", a, make_strength(0.5)), Ingredient("b", b, make_strength(2.0, None, "*norm1=0"))]
    made, report = merge(parts, settings)
    np.testing.assert_allclose(made.biases[LAYER], 0.5 * a.biases[LAYER] + 2 * b.biases[LAYER], rtol=1e-6)
    np.testing.assert_allclose(norms_of(made)[NORM], 0.5 * norms_of(a)[NORM], rtol=1e-6)
    np.testing.assert_allclose(made.biases[NORM], 0.5 * a.biases[NORM], rtol=1e-6)
    assert report.notes == ()
    assert {item.module for item in report.modules} == {LAYER, NO_BIAS}


def test_ties_and_dare_are_the_same_rules_for_a_vector():
    a, b = form_of(0), form_of(1)
    parts = [Ingredient("a", a), Ingredient("b", b)]
    ties = merge(parts, MergeSettings("ties", density=1.0))[0].biases[LAYER]
    x, y = a.biases[LAYER], b.biases[LAYER]
    sign = np.sign(x + y)
    agreeing = [np.where(np.sign(v) == sign, v, np.nan) for v in (x, y)]
    np.testing.assert_allclose(ties, np.nanmean(agreeing, axis=0), rtol=1e-6)
    dare = merge(parts, MergeSettings("dare", density=1.0))[0].biases[LAYER]
    np.testing.assert_allclose(dare, x + y, rtol=1e-6)


def test_other_channels_are_refused_with_both_named():
    parts = [Ingredient("a", form_of(0)), Ingredient("b", form_of(1, {LAYER: 16}))]
    with pytest.raises(BadInput, match="has 32 channels in adapter a and 16 channels in adapter b"):
        merge(parts, MergeSettings())


def test_a_resize_keeps_them_to_the_bit():
    form = form_of(0)
    made, report = resize(form, RankRule(2))
    assert {item.rank for item in made.modules.values()} == {2}
    np.testing.assert_array_equal(made.biases[LAYER], form.biases[LAYER])
    np.testing.assert_array_equal(norms_of(made)[NORM], norms_of(form)[NORM])
    assert report.notes == ()
    with pytest.raises(BadInput, match="has no weights to resize"):
        resize(AdapterForm("sd15", others=form.others, biases=form.biases), RankRule(2))


def test_the_xray_says_that_they_are_not_among_its_figures():
    form = form_of(0)
    seen = xray(form, changes_of(form))
    assert {item.module for item in seen.modules} == {LAYER, NO_BIAS}
    assert "it changes 1 norms and 2 biases, too, which are not among the figures" in seen.warnings


def test_a_run_s_names_hold_them(tmp_path):
    form = form_of(0, {LAYER: 32, NORM: 32, TEXT_NORM: 32})
    tensors, metadata = diffusers.write_exact(form)
    back = reading.read(tensors, metadata, "sd15")
    assert back.ignored == ()
    assert back.biases.keys() == form.biases.keys()
    for module, values in form.biases.items():
        np.testing.assert_array_equal(back.biases[module], values)
    for module, values in norms_of(form).items():
        np.testing.assert_array_equal(norms_of(back)[module], values)
    assert {m: f.scale for m, f in back.modules.items()} == {m: f.scale for m, f in form.modules.items()}


def test_biases_alone_beside_lora_reach_a_kohya_file(tmp_path):
    form = AdapterForm("sd15", form_of(0).modules, biases={LAYER: noise(32)})
    save(tmp_path / "a.safetensors", *diffusers.write_exact(form))
    export_adapter(tmp_path / "a.safetensors", tmp_path / "k.safetensors", "kohya", family="sd15")
    back = load_adapter(tmp_path / "k.safetensors", "sd15")[0]
    np.testing.assert_array_equal(back.biases[LAYER], form.biases[LAYER])


def test_a_merge_in_the_catalog_keeps_them(ws, tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        path = ws.home / "adapters" / f"{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        save(path, *diffusers.write_exact(form_of(seed)))
        add_file(ws, name, path)
    made = merge_in(ws, [Use("a"), Use("b")], name="both").adapter
    form = load_adapter(ws.resolve(made.path), "sd15")[0]
    np.testing.assert_allclose(
        form.biases[NORM], form_of(0).biases[NORM] + form_of(1).biases[NORM], rtol=1e-6
    )
    report = export(ws, "both", "kohya", tmp_path / "both")
    assert report.matched == report.modules == 3
    with pytest.raises(BadInput, match="cannot hold changes of biases"):
        export(ws, "both", "diffusers", tmp_path / "no")
    assert ws.catalog.get(Adapter, "both").method == "lora"


SIDES = {LAYER: 32, NORM: 32, GROUP_NORM: 64, "unet.conv_norm_out": 32, TEXT_NORM: 32, TEXT: 64}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return save_base("sd15", tmp_path_factory.mktemp("bases") / "sd15")


def vectors_of(folder):
    """Every bias and norm of a diffusers folder, by module and leaf."""
    found = {}
    for component in ("unet", "text_encoder"):
        for name, value in read_tensors(next((folder / component).glob("*.safetensors"))).items():
            path, _, leaf = name.rpartition(".")
            path = path if component == "unet" or path.startswith("text_model.") else f"text_model.{path}"
            found[f"{component}.{path}", leaf] = value
    return found


def sides_of(folder):
    before = vectors_of(folder)
    return {module: len(before[module, "bias"]) for module in SIDES}


def test_a_baked_folder_has_them_in_its_norms_and_biases(toy, tmp_path):
    form = form_of(0, sides_of(toy))
    parts = [Ingredient("a", form, make_strength(0.5))]
    report = bake(BaseWeights(toy, "sd15"), parts, tmp_path / "out")
    assert report.notes == ()
    before, after = vectors_of(toy), vectors_of(tmp_path / "out")
    changed = {key for key in before if not np.array_equal(before[key], after[key])}
    wanted = {(m, "weight") for m in (*form.modules, *norms_of(form))} | {(m, "bias") for m in form.biases}
    assert changed == wanted
    assert report.modules == len({module for module, _ in wanted})
    for module, bias in form.biases.items():
        np.testing.assert_allclose(
            after[module, "bias"], before[module, "bias"] + 0.5 * bias, rtol=1e-5, atol=1e-6
        )
    for module, norm in norms_of(form).items():
        np.testing.assert_allclose(
            after[module, "weight"], before[module, "weight"] + 0.5 * norm, rtol=1e-5, atol=1e-6
        )


def test_a_baked_file_is_the_baked_folder(tmp_path):
    """The names of norms and biases in a published SDXL file, OpenCLIP's fused ones included."""
    folder = save_base_with_two_layers(tmp_path / "base")
    te2 = "text_encoder_2.text_model.encoder.layers.0"
    names = [NORM, "unet.mid_block.resnets.0.norm2", "unet.conv_norm_out", LAYER, f"{te2}.layer_norm1",
             f"{te2}.self_attn.v_proj", f"{te2}.mlp.fc2", TEXT_NORM, TEXT,
             "text_encoder_2.text_model.final_layer_norm"]  # fmt: skip
    base = BaseWeights(folder, "sdxl")
    sides = {name: base.vector(name, "bias").info.shape[0] for name in names}
    norms = {m: FullFactors(noise(n, seed=1), "norm") for m, n in sides.items() if "norm" in m}
    form = AdapterForm("sdxl", others=norms, biases={m: noise(n, seed=2) for m, n in sides.items()})
    parts = [Ingredient("a", form)]
    bake(base, parts, tmp_path / "folder")
    bake(
        BaseWeights(save_sdxl(folder, tmp_path / "base.safetensors"), "sdxl"),
        parts,
        tmp_path / "out.safetensors",
    )
    wanted = read_tensors(save_sdxl(tmp_path / "folder", tmp_path / "wanted.safetensors"))
    got = read_tensors(tmp_path / "out.safetensors")
    assert got.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(got[name], values, err_msg=name)


def save_base_with_two_layers(folder):
    save_base("sdxl", folder)
    unet = FAMILIES["sdxl"].load_class().tiny()["unet"]
    type(unet).from_config({**unet.config, "layers_per_block": 2}).save_pretrained(folder / "unet")
    return folder


def test_what_cannot_be_added_is_refused_and_nothing_is_written(toy, tmp_path):
    plain = form_of(0).modules
    base = BaseWeights(toy, "sd15")
    out = tmp_path / "out"
    form = AdapterForm("sd15", plain, biases={NO_BIAS: noise(32)})
    with pytest.raises(
        BadInput, match=f"adapter a: changes the bias of {NO_BIAS}, which has none .*--convert lora"
    ):
        bake(base, [Ingredient("a", form)], out)
    form = AdapterForm("sd15", plain, biases={LAYER: noise(48)})
    with pytest.raises(BadInput, match="has 48 channels in the adapter and 32 in the base"):
        bake(base, [Ingredient("a", form)], out)
    far = "unet.down_blocks.9.attentions.0.norm"
    form = AdapterForm("sd15", plain, {far: FullFactors(noise(8), "norm")})
    report = bake(base, [Ingredient("a", form)], out)
    assert report.notes == (f"a: 1 modules are not in this base, the first is {far}",)
    with pytest.raises(BadInput, match="has no module of this base"):
        bake(
            base,
            [Ingredient("a", AdapterForm("sd15", {}, {far: FullFactors(noise(8), "norm")}))],
            out,
            overwrite=True,
        )


def test_norms_of_a_published_transformer_are_refused(tmp_path):
    folder = save_base("sd35", tmp_path / "base")
    file = save_sd35(folder, tmp_path / "base.safetensors")
    norm = "transformer.transformer_blocks.0.attn.norm_q"
    form = AdapterForm("sd35", {}, {norm: FullFactors(noise(8), "norm")})
    with pytest.raises(BadInput, match=f"changes {norm}, whose place in a single file of sd35 is not known"):
        bake(BaseWeights(file, "sd35"), [Ingredient("a", form)], tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_what_lies_in_the_folder_beside_a_single_file_is_said(tmp_path):
    folder = save_base("sd35", tmp_path / "base")
    file = save_sd35(folder, tmp_path / "base.safetensors", whole=False)
    base = BaseWeights(file, "sd35", folder)
    query, text = "transformer.transformer_blocks.0.attn.to_q", TEXT
    form = make_form({m: base.shape(m) for m in (query, text)}, family="sd35")
    report = bake(base, [Ingredient("a", form)], tmp_path / "out.safetensors")
    assert report.modules == 1
    said = f"a: 1 modules lie in the folder beside the file, which is not baked: {text}"
    assert report.notes == (said,)
