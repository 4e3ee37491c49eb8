"""Foreign files of other methods, against sums written out by hand."""

import json

import numpy as np
import pytest

from registry.errors import BadInput
from registry.formats import lycoris, reading
from registry.formats.export import export_adapter
from registry.formats.factors import DoraFactors, OftBlocks, OftFactors, change_of, merged_weight
from registry.formats.internal import AdapterForm, LoraFactors
from registry.formats.load import load_adapter
from registry.formats.metadata import training_metadata
from registry.formats.tensors import save

PATH = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
NAME, MODULE = "lora_unet_" + PATH.replace(".", "_"), f"unet.{PATH}"
CONV = "lora_unet_down_blocks_0_downsamplers_0_conv"
OUT, INTO, RANK = 6, 768, 2


def noise(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def read(parts, name=NAME):
    form = reading.read({f"{name}.{part}": value for part, value in parts.items()}, {}, "sd15")
    (factors,) = form.others.values()
    return factors


def scalar(value):
    return np.array(value, np.float32)


def loha(rank=RANK, columns=INTO):
    return {
        "hada_w1_a": noise(OUT, rank, seed=1),
        "hada_w1_b": noise(rank, columns, seed=2),
        "hada_w2_a": noise(OUT, rank, seed=3),
        "hada_w2_b": noise(rank, columns, seed=4),
        "alpha": scalar(3.0),
    }


def test_loha_is_its_formula():
    parts = loha()
    one = sum(np.multiply.outer(parts["hada_w1_a"][:, r], parts["hada_w1_b"][r]) for r in range(RANK))
    two = sum(np.multiply.outer(parts["hada_w2_a"][:, r], parts["hada_w2_b"][r]) for r in range(RANK))
    np.testing.assert_allclose(read(parts).delta(), 1.5 * one * two, rtol=1e-5, atol=1e-5)


def test_loha_of_a_convolution_with_a_core():
    parts = {
        "hada_t1": noise(2, 2, 3, 3, seed=5),
        "hada_w1_a": noise(2, 4, seed=6),
        "hada_w1_b": noise(2, 5, seed=7),
        "hada_t2": noise(2, 2, 3, 3, seed=8),
        "hada_w2_a": noise(2, 4, seed=9),
        "hada_w2_b": noise(2, 5, seed=10),
    }
    wanted = np.ones((4, 5, 3, 3))
    for index in "12":
        core, a, b = (parts[f"hada_{part}"] for part in (f"t{index}", f"w{index}_a", f"w{index}_b"))
        total = np.zeros((4, 5, 3, 3))
        for i in range(2):
            for j in range(2):
                total += a[i][:, None, None, None] * b[j][None, :, None, None] * core[i, j]
        wanted = wanted * total
    weight = np.zeros((4, 5, 3, 3), np.float32)
    np.testing.assert_allclose(change_of(read(parts, CONV), weight), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("whole", [False, True])
def test_lokr_is_its_formula(whole):
    w1, a, b = noise(2, 3, seed=11), noise(3, RANK, seed=12), noise(RANK, 256, seed=13)
    w2 = {"lokr_w2": noise(3, 256, seed=14)} if whole else {"lokr_w2_a": a, "lokr_w2_b": b}
    factors = read({"lokr_w1": w1, "alpha": scalar(5.0), **w2})
    second = w2["lokr_w2"] if whole else a @ b
    wanted = np.zeros((6, 768))
    for i in range(2):
        for j in range(3):
            wanted[3 * i : 3 * i + 3, 256 * j : 256 * j + 256] = w1[i, j] * second
    np.testing.assert_allclose(factors.delta(), wanted * (1 if whole else 2.5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shape", "per_output"), [((OUT,), True), ((OUT, 1), True), ((1, INTO), False)])
def test_dora_of_every_shape(shape, per_output):
    down, up, magnitude = (
        noise(RANK, INTO, seed=15),
        noise(OUT, RANK, seed=16),
        np.abs(noise(*shape, seed=17)),
    )
    factors = read(
        {"lora_down.weight": down, "lora_up.weight": up, "alpha": scalar(1.0), "dora_scale": magnitude}
    )
    weight = noise(OUT, INTO, seed=18)
    turned = weight + 0.5 * up @ down
    flat = magnitude.reshape(-1)
    wanted = np.empty_like(turned)
    for o in range(OUT):
        for i in range(INTO):
            line = turned[o] if per_output else turned[:, i]
            wanted[o, i] = turned[o, i] * (flat[o] if per_output else flat[i]) / np.sqrt((line**2).sum())
    assert isinstance(factors, DoraFactors)
    assert factors.per_output == per_output
    np.testing.assert_allclose(merged_weight(factors, weight), wanted, rtol=1e-4, atol=1e-5)


def test_oft_blocks_turn_the_outputs():
    blocks = noise(3, 2, 2, seed=19) / 4
    factors = read({"oft_blocks": blocks, "alpha": scalar(0.0), "rescale": np.full((6, 1), 2.0, np.float32)})
    assert isinstance(factors, OftBlocks)
    weight = noise(OUT, INTO, seed=20)
    wanted = np.empty_like(weight)
    for k in range(3):
        skew = blocks[k] - blocks[k].T
        turn = (np.eye(2) + skew) @ np.linalg.inv(np.eye(2) - skew)
        np.testing.assert_allclose(turn @ turn.T, np.eye(2), atol=1e-6)
        wanted[2 * k : 2 * k + 2] = 2 * turn.T @ weight[2 * k : 2 * k + 2]
    np.testing.assert_allclose(merged_weight(factors, weight), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("terms", [0, 3, 5])
def test_oft_of_peft_turns_the_inputs_as_peft_does(terms):
    import torch
    from peft.tuners.oft.layer import OFTRotationModule

    module = OFTRotationModule(
        4, 6, 4, 16, use_cayley_neumann=bool(terms), num_cayley_neumann_terms=terms or 5
    )
    vectors = noise(4, 6, seed=21) / 3
    module.weight.data = torch.from_numpy(vectors)
    weight = noise(OUT, 16, seed=22)
    x = torch.from_numpy(noise(3, 16, seed=23))
    with torch.no_grad():
        wanted = module(x) @ torch.from_numpy(weight).T
    merged = merged_weight(OftFactors(vectors, terms), weight)
    np.testing.assert_allclose(x.numpy() @ merged.T, wanted.numpy(), rtol=1e-4, atol=1e-4)


def file_of(parts, path, **metadata):
    values = {f"{NAME}.{part}": value for part, value in parts.items()}
    save(path, values, metadata)
    return path


@pytest.mark.parametrize(
    ("family", "do"), [("sd15", "--format kohya or peft"), ("flux1", "--convert lora, or --format peft")]
)
def test_what_diffusers_cannot_hold_is_sent_where_it_can_go(family, do):
    form = reading.read({f"{NAME}.{part}": value for part, value in loha().items()}, {}, "sd15")
    with pytest.raises(BadInput, match=do):
        lycoris.write_diffusers(AdapterForm(family, others=form.others))


def test_a_foreign_file_is_inspected_and_written_again(tmp_path):
    path = file_of(loha(), tmp_path / "a.safetensors")
    form, facts, _ = load_adapter(path)
    assert (facts.family, facts.method, facts.rank, facts.alpha) == ("sd15", "loha", RANK, 3.0)
    assert (facts.modules, facts.layout, facts.context_dim, facts.targets) == (1, "kohya", 768, ("unet",))
    report = export_adapter(path, tmp_path / "b")
    assert (report.layout, report.matched, report.worst_error) == ("kohya", 1, 0.0)
    assert {tool.tool: tool.verdict for tool in report.tools} == {
        "diffusers": "no", "ComfyUI": "loads", "A1111": "loads", "Forge": "loads", "InvokeAI": "loads",
        "kohya sd-scripts": "loads",
    }  # fmt: skip
    with pytest.raises(BadInput, match="the peft layout: needs the configuration"):
        export_adapter(path, tmp_path / "c", "peft")
    assert form.components == ("unet",)


@pytest.mark.parametrize(("whole", "verdict"), [(True, "loads"), (False, "no")])
def test_invokeai_does_not_recognise_a_factored_lokr_of_sd15_alone(tmp_path, whole, verdict):
    parts = {"lokr_w1": noise(2, 3), "alpha": scalar(1.0)}
    parts |= {"lokr_w2": noise(3, 256)} if whole else {"lokr_w2_a": noise(3, 2), "lokr_w2_b": noise(2, 256)}
    report = export_adapter(file_of(parts, tmp_path / "a.safetensors"), tmp_path / "b")
    assert {tool.tool: tool.verdict for tool in report.tools}["InvokeAI"] == verdict


def test_lora_and_lokr_modules_in_one_file(tmp_path):
    parts = {"lokr_w1": noise(2, 3), "lokr_w2": noise(3, 256), "alpha": scalar(1.0)}
    path = file_of(parts, tmp_path / "a.safetensors")
    tensors = {f"{NAME}.{part}": value for part, value in parts.items()}
    text = "lora_te_text_model_encoder_layers_0_self_attn_out_proj"
    tensors |= {f"{text}.lora_down.weight": noise(2, 8), f"{text}.lora_up.weight": noise(8, 2)}
    save(path, tensors, {})
    form, facts, _ = load_adapter(path)
    assert facts.method == "lokr"
    assert form.components == ("unet", "text_encoder")
    report = export_adapter(path, tmp_path / "b")
    assert (report.modules, report.matched) == (2, 2)
    verdicts = {tool.tool: (tool.verdict, tool.matched) for tool in report.tools}
    assert verdicts["ComfyUI"] == ("loads", 2)
    assert verdicts["diffusers"] == ("partly", 1)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"hada_w2_b": None}, "lacks some of its factors"),
        ({"hada_w2_b": noise(3, INTO)}, "do not fit"),
        ({"hada_w2_b": noise(RANK, 7)}, "do not fit"),
        ({"hada_w1_b": noise(RANK, 0)}, "has an empty factor"),
    ],
)
def test_unsound_factors_are_one_line(change, wrong):
    parts = {key: value for key, value in (loha() | change).items() if value is not None}
    with pytest.raises(BadInput, match=wrong):
        read(parts)


def test_a_kronecker_product_of_impossible_size_is_refused_before_it_is_made():
    big = np.zeros((30_000, 1), np.float32)
    with pytest.raises(BadInput, match="claims a weight of 900000000 x 1"):
        read({"lokr_w1": big, "lokr_w2": big})


@pytest.mark.parametrize("text", ["{", "[]", '{"unet": 3}', '{"unet": {"peft_type": "LOHA", "r": "x"}}'])
def test_broken_configurations_are_one_line(text):
    tensors = {f"{MODULE}.{part}": value for part, value in loha().items() if part != "alpha"}
    with pytest.raises(BadInput, match=r"studio\.peft"):
        reading.read(tensors, {"studio.peft": text}, "sd15")


def test_strengths_of_a_run_come_from_its_configuration():
    tensors = {f"{MODULE}.{part}": value for part, value in loha().items() if part != "alpha"}
    config = {"unet": {"peft_type": "LOHA", "r": 2, "alpha": 4, "alpha_pattern": {"to_k": 1}}}
    form = reading.read(tensors, {"studio.peft": json.dumps(config)}, "sd15")
    assert form.others[MODULE].strength == 1.0


def test_half_precision_keeps_magnitudes(tmp_path):
    down, up = noise(RANK, INTO, seed=1) / 100, noise(OUT, RANK, seed=2)
    parts = {"lora_down.weight": down, "lora_up.weight": up, "alpha": scalar(2.0)}
    parts["dora_scale"] = np.full((OUT, 1), 3.14159274, np.float32)
    path = file_of(parts, tmp_path / "a.safetensors")
    export_adapter(path, tmp_path / "b", dtype="fp16")
    form, _, _ = load_adapter(tmp_path / "b.safetensors")
    factors = form.others[MODULE]
    assert isinstance(factors, DoraFactors)
    assert isinstance(factors.inner, LoraFactors)
    assert set(factors.magnitude.tolist()) == {np.float32(3.14159274)}


def test_metadata_names_the_network_that_reads_it():
    from datetime import UTC, datetime

    from registry.formats.metadata import TrainingFacts

    recipe = {"adapter": {"method": "lokr", "lokr_factor": 8, "conv_rank": 4}}
    facts = TrainingFacts(
        name="x", family="sd15", rank=4, alpha=4.0, created_at=datetime(2026, 1, 1, tzinfo=UTC), recipe=recipe
    )
    written = training_metadata(facts)
    assert written["ss_network_module"] == "lycoris.kohya"
    assert json.loads(written["ss_network_args"]) == {
        "algo": "lokr", "factor": "8", "conv_dim": "4", "conv_alpha": "4",
    }  # fmt: skip
