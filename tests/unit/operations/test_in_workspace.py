"""Operations on adapters of a workspace: what is made, what it inherits, what is refused; the commands."""

import json

import numpy as np
import pytest

from registry.errors import BadInput, NotFound, StudioError
from registry.formats.export import export_adapter
from registry.formats.header import read_header
from registry.formats.internal import AdapterForm
from registry.formats.operations.merge import MergeSettings
from registry.formats.operations.ranks import RankRule
from registry.records import Adapter, Base
from studio.adapters import export, trash, verify
from studio.operations import Use, merge, resize, xray
from tests.support.adapters import files, form_of, make_form, write_run_file
from tests.support.cli import call_here
from tests.support.sampling import ALL_MODULES, MODULES, add_adapter, add_file, pocket_shapes


def cli(ws, *arguments, code=0):
    done = call_here(ws.home, *arguments)
    assert done.code == code, done.stderr
    return done


def test_a_merge_is_the_sum_and_knows_where_it_came_from(ws, ink, wash):
    made = merge(ws, [Use("ink", 0.8), Use(wash.id, 0.5, 0.2, "MID=0")], name="both")
    record = ws.catalog.get(Adapter, "both")
    assert record == made.adapter
    form, (a, b) = form_of(ws, record), (form_of(ws, item) for item in (ink, wash))
    for name in ALL_MODULES:
        weight = 0.2 if name.startswith("text") else 0.0 if "mid_block" in name else 0.5
        wanted = 0.8 * a.delta(name) + weight * b.delta(name)
        assert np.allclose(form.delta(name), wanted, atol=1e-6), name
    assert (record.origin, record.parents, record.family) == ("merge", (ink.id, wash.id), "sd15")
    assert record.trigger_words == ("inkstyle", "washstyle")
    assert record.tags == ("drawing", "wet")
    assert record.licence == "CC BY 4.0; no commercial use"
    assert record.consent == "Ann agreed"
    lineage = record.metadata["made"]
    assert lineage["operation"] == "merge"
    assert lineage["parents"][1] == {
        "id": wash.id, "name": "wash", "tensor_sha256": wash.tensor_sha256, "weight": 0.5,
    }  # fmt: skip
    assert lineage["settings"]["strengths"][1]["blocks"][0]["name"] == "MID"
    assert verify(ws, record.id).state == "ok"
    assert made.report.total_error == 0
    metadata = read_header(ws.resolve(record.path)).metadata
    assert metadata["modelspec.license"] == record.licence
    assert json.loads(metadata["studio.parents"]) == [ink.tensor_sha256, wash.tensor_sha256]
    assert json.loads(metadata["studio.trigger_words"]) == ["inkstyle", "washstyle"]


@pytest.mark.parametrize("layout", ["kohya", "diffusers", "peft"])
def test_a_merge_is_exported_with_proof(ws, ink, wash, layout, tmp_path):
    merge(ws, [Use("ink"), Use("wash")], name="both")
    report = export(ws, "both", layout, tmp_path / "out")
    assert report.matched == report.modules == len(ALL_MODULES)


def test_the_scale_that_is_kept_is_in_the_file(ws, ink):
    made = resize(ws, "ink", RankRule(8, sv_ratio=3), name="small", alpha="scale")
    form, old = form_of(ws, made.adapter), form_of(ws, ink)
    assert {f.rank for f in form.modules.values()} != {4}
    for name, factors in form.modules.items():
        assert factors.scale == pytest.approx(old.modules[name].scale)
        lost = np.linalg.norm(factors.delta() - old.delta(name)) / np.linalg.norm(old.delta(name))
        stated = next(item.error for item in made.report.modules if item.module == name)
        assert lost == pytest.approx(stated, abs=1e-5)
    assert made.adapter.origin == "resize"
    assert made.adapter.metadata["made"]["settings"]["sv_ratio"] == 3


def test_half_precision_is_kept(ws, ink, tmp_path):
    file = write_run_file(
        make_form(pocket_shapes(ws, ALL_MODULES), seed=8), ws.home / "adapters/half.safetensors", np.float16
    )
    add_file(ws, "half", file)
    assert merge(ws, [Use("half")], name="one").adapter.metadata["dtype"] == "fp16"
    assert merge(ws, [Use("half"), Use("ink")], name="two").adapter.metadata["dtype"] == "fp32"
    assert (
        merge(ws, [Use("half"), Use("ink")], name="three", dtype="bf16").adapter.metadata["dtype"] == "bf16"
    )


def test_what_cannot_be_made_leaves_nothing(ws, ink, wash, tmp_path, monkeypatch):
    other = write_run_file(
        make_form(pocket_shapes(ws, ALL_MODULES), seed=4), ws.home / "adapters/other.safetensors"
    )
    add_file(ws, "other", other, family="sd21")
    add_adapter(ws, "huge", alpha=1e9)
    before = files(ws)
    for uses, options, wrong in (
        ([Use("ink"), Use("other")], {}, "adapter other: is for sd21, adapter ink for sd15"),
        ([Use("ink")], {"name": "wash"}, "adapter 'wash': exists already"),
        ([Use("ink")], {"name": "a/b"}, "has a path separator"),
        ([Use("ink", 0)], {}, "all weights are 0"),
        ([Use("ink", 1e9)], {}, "is not between -100 and 100"),
        ([Use("ink", 1, None, "HEAD=2")], {}, "is no block"),
        ([Use("ink")], {"dtype": "int4"}, "is unknown"),
        ([Use("huge")], {"dtype": "fp16"}, "cannot hold tensor"),
        ([Use("ink")], {"settings": MergeSettings("magic")}, "method 'magic': is unknown"),
        ([Use("ink")], {"base": "nothing"}, "nothing"),
    ):
        with pytest.raises(BadInput, match=wrong):
            merge(ws, uses, **{"name": "new", **options})
    with pytest.raises(NotFound):
        merge(ws, [Use("nobody")], name="new")
    merge(ws, [Use("ink")], name="copy")
    with pytest.raises(BadInput, match="adapter copy: has these weights already and is in the catalog"):
        merge(ws, [Use("ink")], name="again")
    trash(ws, "copy")
    with pytest.raises(BadInput, match="is in the trash"):
        merge(ws, [Use("ink")], name="again")
    trash(ws, "wash")
    with pytest.raises(BadInput, match="adapter wash: is in the trash"):
        merge(ws, [Use("wash")], name="again")
    monkeypatch.setattr(
        type(ws.catalog),
        "register_adapter",
        lambda *_: (_ for _ in ()).throw(StudioError("catalog", "is full")),
    )
    with pytest.raises(StudioError, match="is full"):
        merge(ws, [Use("ink"), Use("ink")], name="again")
    assert files(ws) == sorted(set(before) - {"wash.safetensors"})


def test_a_family_that_is_not_known_is_refused(ws, ink):
    ws.catalog.update(Adapter, ink.id, family="")
    with pytest.raises(BadInput, match="is of no known family"):
        merge(ws, [Use("ink")], name="new")


def test_dora_takes_its_base(ws, ink):
    """DoRA as a run leaves it, of the pocket base: resized to full rank it changes the base by the same."""
    from registry.formats.factors import DoraFactors, change_of
    from registry.formats.operations.sources import BaseWeights
    from registry.formats.tensors import save

    pocket = ws.catalog.get(Base, "pocket")
    base = BaseWeights(ws.resolve(pocket.location), "sd15")
    plain = make_form(pocket_shapes(ws, (MODULES[2],)), seed=3)
    inner = plain.modules[MODULES[2]]
    weight = base.read(MODULES[2])
    form = DoraFactors(inner, 1.1 * np.linalg.norm(weight, axis=1))
    path = ws.home / "adapters/dora.safetensors"
    tensors = {
        f"{MODULES[2]}.lora_A.weight": inner.down,
        f"{MODULES[2]}.lora_B.weight": inner.up * np.float32(inner.scale),
        f"{MODULES[2]}.lora_magnitude_vector": form.magnitude,
    }  # fmt: skip
    save(path, tensors, {"format": "pt"})
    record = add_file(ws, "dora", path)
    with pytest.raises(BadInput, match=r"adapter dora, module .* is DORA, .* name the base with --base"):
        merge(ws, [Use("dora")], name="flat")
    with pytest.raises(BadInput, match="is DORA"):
        xray(ws, ["dora"])
    by_name = resize(ws, "dora", RankRule(512), name="flat", base="pocket")
    wanted = change_of(form, weight)
    got = form_of(ws, by_name.adapter).delta(MODULES[2])
    assert np.linalg.norm(got - wanted) < 1e-4 * np.linalg.norm(wanted)
    assert by_name.report.notes == ("dora became LoRA",)
    ws.catalog.update(Adapter, record.id, base_id=pocket.id)
    assert xray(ws, ["dora"])["adapters"][0]["norm"] == pytest.approx(np.linalg.norm(wanted), rel=1e-4)


def test_the_xray_of_several_compares_them(ws, ink, wash):
    found = xray(ws, ["ink", "wash", "ink"])
    assert [item["name"] for item in found["adapters"]] == ["ink", "wash", "ink"]
    assert [(pair["a"], pair["b"]) for pair in found["similarity"]] == [
        ("ink", "wash"),
        ("ink", "ink"),
        ("wash", "ink"),
    ]
    assert found["similarity"][1]["overall"] == pytest.approx(1)
    assert abs(found["similarity"][0]["overall"]) < 0.3
    json.dumps(found)


def test_the_commands(ws, ink, wash, tmp_path):
    done = cli(ws, "adapters", "merge", "ink:0.8", "wash:0.5:0[OUT=0]", "--rank", "5", "--name", "both")
    assert "Made both" in done.stdout
    assert "Error" in done.stdout
    data = json.loads(
        cli(ws, "adapters", "resize", "both", "--sv-fro", "0.9", "--name", "small", "--json").stdout
    )
    assert data["adapter"]["name"] == "small"
    assert data["report"]["total_error"] > 0
    assert len(data["report"]["modules"]) == data["report"]["count"]
    table = cli(ws, "adapters", "xray", "ink", "both").stdout
    assert "IN00" in table
    assert "similarity" in table
    out = tmp_path / "pocket-ink"
    assert "Added as base pocket-ink" in cli(
        ws, "adapters", "bake", "ink", "--base", "pocket", "--out", str(out), "--add", "pocket-ink"
    ).stdout  # fmt: skip
    made = cli(
        ws, "adapters", "extract", "--base", "pocket", "--tuned", str(out), "--rank", "4", "--name", "back"
    )
    assert "Made back" in made.stdout
    cli(ws, "adapters", "edit", "back", "--title", "Back", "--set", "a=b=c", "--trigger", "")
    assert read_header(ws.resolve(ws.catalog.get(Adapter, "back").path)).metadata["a"] == "b=c"


@pytest.mark.parametrize(
    "arguments",
    [
        ["merge", "nobody", "--name", "x"],
        ["merge", "ink:0.8[HEAD=1]", "--name", "x"],
        ["merge", "ink:nan", "--name", "x"],
        ["merge", "ink", "--name", "ink"],
        ["merge", "ink", "--name", "x", "--method", "sum"],
        ["merge", "ink", "--name", "x", "--rank", "-3"],
        ["resize", "ink", "--name", "x"],
        ["resize", "ink", "--name", "x", "--sv-ratio", "0.5"],
        ["resize", "ink", "--name", "x", "--rank", "4", "--alpha", "half"],
        ["extract", "--base", "pocket", "--tuned", "/nowhere", "--rank", "4", "--name", "x"],
        ["bake", "ink", "--base", "pocket", "--out", "/proc/x"],
        ["edit", "ink"],
        ["edit", "ink", "--set", "novalue"],
        ["xray", "nobody"],
    ],
)
def test_bad_input_is_one_line(ws, ink, arguments):
    code = 1 if "/proc/x" in arguments else 2
    done = cli(ws, "adapters", *arguments, code=code)
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert files(ws) == ["ink.safetensors"]


@pytest.mark.filterwarnings("ignore")
def test_diffusers_draws_a_merge_as_both_adapters(ws, tmp_path):
    """The merged file in the library's own loader predicts what `set_adapters` with the weights does."""
    import torch
    from diffusers import StableDiffusionPipeline

    for seed, name in enumerate(("a", "b")):
        add_adapter(ws, name, ALL_MODULES, seed=seed, rank=3 + seed, alpha=2.0)
        export(ws, name, "kohya", tmp_path / f"{name}.safetensors")
    merge(ws, [Use("a", 0.8), Use("b", -0.5)], name="both")
    folder = ws.resolve(ws.catalog.get(Base, "pocket").location)

    def picture(files, weights):
        pipe = StableDiffusionPipeline.from_pretrained(
            folder, torch_dtype=torch.float32, safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
        pipe.set_progress_bar_config(disable=True)
        for file in files:
            pipe.load_lora_weights(
                file.parent, weight_name=file.name, adapter_name=file.stem.split("-")[0][:8]
            )
        if weights:
            pipe.set_adapters(list(pipe.get_list_adapters()["unet"]), weights)
        return pipe(
            "a red circle", num_inference_steps=3, guidance_scale=3.0, width=32, height=32, output_type="np",
            generator=torch.Generator().manual_seed(7),
        ).images[0]  # fmt: skip

    wanted = picture([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], [0.8, -0.5])
    plain = picture([], [])
    assert np.abs(wanted - plain).max() > 0.02
    direct = picture([ws.resolve(ws.catalog.get(Adapter, "both").path)], [])
    assert np.abs(direct - wanted).max() < 1e-3
    export(ws, "both", "kohya", tmp_path / "both.safetensors")
    assert np.abs(picture([tmp_path / "both.safetensors"], []) - wanted).max() < 1e-3


def test_new_words_go_along(ws):
    rows = {"zork": {"text_encoder": np.ones((2, 32), np.float32)}}
    form = AdapterForm("sd15", make_form(seed=1).modules, words=rows)
    from registry.formats import diffusers, words
    from registry.formats.tensors import save

    path = ws.home / "adapters/w.safetensors"
    save(path, diffusers.write(form)[0] | words.own(rows), {})
    add_file(ws, "w", path)
    made = merge(ws, [Use("w", 0.5)], name="with words")
    assert np.array_equal(
        form_of(ws, made.adapter).words["zork"]["text_encoder"], rows["zork"]["text_encoder"]
    )
    report = export_adapter(ws.resolve(made.adapter.path), ws.home / "exports/x", "kohya")
    assert report.matched == report.modules
