"""Recipes: what is read, what is refused and with which line, presets, round trips."""

import json
import math
import subprocess
import sys

import pytest
import tomlkit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.errors import BadInput
from trainers.recipe import (
    PRESETS,
    Recipe,
    apply_sets,
    differences,
    load_frozen,
    load_recipe,
    preset,
    preset_by_name,
    preset_name,
    preset_names,
    preset_text,
    reasons,
    recipe_fields,
    recipe_hash,
    to_toml,
)
from trainers.recipe_fields import FITS_SOME_METHODS

GOALS = ("style", "character", "concept")


@pytest.fixture
def toml(tmp_path):
    def write(text):
        path = tmp_path / "recipe.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def refused(path):
    with pytest.raises(BadInput) as caught:
        load_recipe(path)
    message = str(caught.value)
    assert message.startswith("recipe.toml: ")
    assert "\n" not in message
    return message


def test_importing_recipes_does_not_import_torch():
    code = "import sys, trainers.recipe, trainers.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_complete_recipe_is_read(toml):
    recipe = load_recipe(
        toml('family = "sd15"\ngoal = "style"\n[adapter]\nrank = 4\n[train]\nmax_steps = 10\n')
    )
    assert (recipe.adapter.rank, recipe.train.max_steps, recipe.optimizer.name) == (4, 10, "auto")


def test_recipe_on_top_of_a_preset_changes_only_what_it_says(toml):
    recipe = load_recipe(toml('preset = "sd15/character"\nname = "mine"\n[train]\nmax_steps = 7\n'))
    changed = differences(recipe, "sd15-character")
    assert [(d.key, d.preset, d.value) for d in changed] == [("train.max_steps", 1800, 7)]
    assert "likeness" in changed[0].reason
    assert recipe.name == "mine"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[adapter]\nrank = -4", "adapter.rank is -4; must be a whole number from 1 to 1024"),
        ('[adapter]\nrank = "8"', "adapter.rank is '8'; must be a whole number from 1 to 1024"),
        ("[adapter]\nrank = 8.5", "adapter.rank is 8.5; must be a whole number"),
        ("[adapter]\nrank = true", "adapter.rank is true; must be a whole number"),
        (
            "[train]\nmax_steps = 1_000_000_000",
            "train.max_steps is 1000000000; must be a whole number from 1 to",
        ),
        ("[optimizer]\nlr = nan", "optimizer.lr is nan; must be a number above 0 and at most 10"),
        ("[optimizer]\nlr = inf", "optimizer.lr is inf; must be"),
        ("[optimizer]\nlr = 0", "optimizer.lr is 0; must be a number above 0"),
        (
            "[adapter]\nalpha = -1.0",
            "adapter.alpha is -1.0; must be a number above 0 and at most 4096 or none",
        ),
        ("[log]\nwandb = 1", "log.wandb is 1; must be true or false"),
        (
            '[optimizer]\nname = "sgd"',
            "optimizer.name is 'sgd'; must be one of auto, adamw, adamw8bit, paged_adamw8bit, lion,",
        ),
        (
            "[train]\nresolution = 500",
            "train.resolution is 500; must be a whole number from 32 to 2048, a multiple of 8",
        ),
        ("[checkpoints]\nkeep = 1", "checkpoints.keep is 1; must be a whole number from 2 to 1000"),
        ('[preview]\nsize = "big"', "preview.size is 'big'; must be WIDTHxHEIGHT"),
        ("[preview]\nprompts = [1]", "preview.prompts is 1; must be a list of at most 16 texts"),
        ('[adapter]\ntargets = "("', "adapter.targets is '('; must be a regular expression"),
        (
            "[objective]\ntimestep_min = 500\ntimestep_max = 400",
            "objective.timestep_max is 400; must be above",
        ),
        ("adapter = 3", "adapter is 3; must be a table of keys"),
        ('name = ".."', "name is '..'; it is empty or only dots"),
        ('name = "a/b"', "name is 'a/b'; it has a path separator"),
        ('name = "CON"', "name is 'CON'; it is reserved"),
        ('name = "\\u202Eevil"', "it has a path separator, control or direction character"),
        (f'name = "{"x" * 300}"', "it has 300 characters"),
    ],
)
def test_values_out_of_range_name_field_value_and_range(toml, line, said):
    before, _, _ = line.partition("[")
    head = 'family = "sd15"\ngoal = "style"\n'
    text = head + line if before == "" else line + "\n" + head
    assert said in refused(toml(text))


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("[adapter]\nrnak = 4", "adapter.rank"),
        ("[trian]\nmax_steps = 4", "train"),
        ("rank = 4", "adapter.rank"),
    ],
)
def test_unknown_keys_get_did_you_mean(toml, line, meant):
    text = f'preset = "sd15-style"\n{line}\n'
    assert f"Did you mean {meant}?" in refused(toml(text))


def test_duplicate_key_is_named_with_its_line(toml):
    message = refused(toml('family = "sd15"\ngoal = "style"\n[adapter]\nrank = 4\nrank = 8\n'))
    assert "line 5 gives rank a second time" in message
    assert "line 3 gives [train] a second time" in refused(toml("[train]\nseed = 1\n[train]\nseed = 2\n"))


def test_several_faults_come_in_one_line(toml):
    message = refused(toml('family = "sd15"\ngoal = "style"\n[train]\nseed = -1\nbatch_size = 0\n'))
    assert "train.seed is -1" in message
    assert "train.batch_size is 0" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "family is missing, goal is missing"),
        (b"\xff\xfe\x00", "is not UTF-8 text (byte 0)"),
        (b"hello", "is not TOML"),
        (b"a = " + b"[" * 5000, "is not TOML"),
        (b"x = " + b"9" * 5000, "too deep or too long"),
        (b"#" * (2 << 20), "is larger than 1 MiB"),
        (b'preset = "sd15-stile"', "'sd15-stile' is not a shipped recipe. Did you mean sd15-style?"),
        (b"preset = 3", "preset is 3; must be text"),
        (
            b'family = "sd9"\ngoal = "style"',
            "family is 'sd9'; must be one of sd15, sd21, sdxl, sd35, flux1",
        ),
        (b'family = "sd15"\ngoal = "art"', "goal is 'art'; must be one of style, character, concept"),
    ],
)
def test_broken_files_get_one_line(toml, content, said):
    with pytest.raises(BadInput) as caught:
        load_recipe(toml(content))
    message = str(caught.value)
    assert said in message or (said == "is not TOML" and "too deep" in message)
    assert len(message) < 400
    assert "\n" not in message


def test_missing_file_and_folder_get_one_line(tmp_path):
    with pytest.raises(BadInput, match="cannot be read"):
        load_recipe(tmp_path / "nothing.toml")
    with pytest.raises(BadInput, match="cannot be read"):
        load_recipe(tmp_path)
    with pytest.raises(BadInput, match="is missing"):
        load_frozen(tmp_path / "recipe.json")


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.toml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_parses_and_every_value_has_its_reason(path):
    recipe = load_recipe(path)
    assert recipe.goal == path.stem.rpartition("-")[2]
    written = {
        f"{table}.{key}"
        for table, values in tomlkit.parse(path.read_text()).unwrap().items()
        if isinstance(values, dict)
        for key in values
    }
    assert set(reasons(path.stem)) == written
    assert all(len(why) > 15 and why.endswith(".") for why in reasons(path.stem).values())


def test_there_is_a_preset_for_every_family_and_goal():
    from trainers.families import FAMILIES

    pockets = {"pocket": "sd15", "pocket-xl": "sdxl", "pocket-sd35": "sd35", "pocket-flux": "flux1"}
    wanted = {f"{owner}-{goal}" for owner in (*FAMILIES, *pockets) for goal in GOALS}
    assert set(preset_names()) == wanted
    for base, family in pockets.items():
        for goal in GOALS:
            chosen = preset(family, goal, base)
            assert (chosen.family, chosen.goal, chosen.train.resolution) == (family, goal, 64)
            assert chosen.train.max_steps <= 800  # minutes on a CPU


def test_preset_of_the_base_goes_before_that_of_the_family():
    assert preset_name("sd15", "style") == "sd15-style"
    assert preset_name("sd15", "style", "pocket") == "pocket-style"
    assert preset_name("sdxl", "style", "pocket-xl") == "pocket-xl-style"
    assert preset_name("sd15", "style", "my base") == "sd15-style"
    assert preset_name("sd21", "style", "pocket") == "sd21-style"  # a base of that name and another family
    assert preset("sd21", "concept").train.resolution == 768
    with pytest.raises(BadInput, match="goal: is 'art'"):
        preset("sd15", "art")
    with pytest.raises(BadInput, match="has no shipped recipe"):
        preset("sd0", "style")
    assert preset_text("sd15/style") == (PRESETS / "sd15-style.toml").read_text()


def test_sets_take_toml_values_and_plain_words():
    recipe = apply_sets(
        preset("sd15", "style"),
        [
            "train.max_steps=10", "optimizer.lr = 3e-4", "data.flip=true", "optimizer.name=adamw",
            "data.trigger=sks=1", "adapter.alpha=8", "objective.snr_gamma=none", "name=2024",
            'preview.prompts=["a, b", "c"]', 'preview.negative="blurry"', "train.seed=0x10",
            "optimizer.lr=1e-5", "tokens.words=zork", 'tokens.init="a dog"',
        ],
    )  # fmt: skip
    assert (recipe.tokens.words, recipe.tokens.init) == (("zork",), ("a dog",))
    assert apply_sets(recipe, ["tokens.words="]).tokens.words == ()
    with pytest.raises(BadInput, match="must be a list"):
        apply_sets(recipe, ["tokens.words=[zork, "])
    assert recipe.train.max_steps == 10
    assert recipe.optimizer.lr == 1e-5  # the last one wins
    assert recipe.data.flip is True
    assert recipe.optimizer.name == "adamw"
    assert recipe.data.trigger == "sks=1"
    assert recipe.adapter.scale_alpha == 8.0
    assert recipe.objective.snr_gamma is None
    assert recipe.name == "2024"
    assert recipe.preview.prompts == ("a, b", "c")
    assert recipe.preview.negative == "blurry"
    assert recipe.train.seed == 16


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("train.max_steps", "'train.max_steps' has no '='"),
        ("train.steps=3", "Did you mean train.max_steps?"),
        ("rank=3", "Did you mean adapter.rank?"),
        ("adapter=3", "'adapter' is not a recipe key. name one of its keys, as adapter.method"),
        ("train.max_steps=1\nseed = 2", "train.max_steps is"),
        ("train.max_steps=" + "9" * 5000, "train.max_steps is"),
        ("=3", "is not a recipe key"),
    ],
)
def test_bad_sets_get_one_line(item, said):
    with pytest.raises(BadInput) as caught:
        apply_sets(preset("sd15", "style"), [item])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_encoder_and_convolutions_fall_back_to_rank_and_rate():
    recipe = apply_sets(preset("sd15", "concept"), ["adapter.rank=6", "adapter.conv_rank=3"])
    adapter = recipe.adapter
    assert (adapter.scale_alpha, adapter.scale_conv_alpha) == (6.0, 3.0)
    assert (adapter.text_encoder_rank, adapter.scale_text_alpha) == (6, 6.0)
    assert recipe.optimizer.text_encoder_lr == 2e-5
    assert apply_sets(recipe, ["optimizer.text_lr=none"]).optimizer.text_encoder_lr == recipe.optimizer.lr


@pytest.mark.parametrize("text", ["[512, 768]", "512, 768", "512 768", '["512", "768"]'])
def test_resolutions_are_read_as_people_write_them(text):
    train = apply_sets(preset("sdxl", "style"), [f"train.resolutions={text}"]).train
    assert train.resolutions == (512, 768)
    assert train.sizes == (512, 768, 1024)
    assert apply_sets(preset("sdxl", "style"), ["train.resolutions=768"]).train.sizes == (768, 1024)
    lower = apply_sets(preset("sdxl", "style"), [f"train.resolutions={text}", "train.resolution=640"]).train
    assert lower.sizes == (512, 640)  # a lower resolution is the largest size, whatever a preset lists
    with pytest.raises(BadInput, match=r"resolutions is 'big'; must be a list of whole numbers from 32"):
        apply_sets(preset("sd15", "style"), ["train.resolutions=[512, 'big']"])


def _values(facts):
    if facts.kind == "choice":
        base = st.sampled_from(facts.choices)
    elif facts.kind == "switch":
        base = st.booleans()
    elif facts.kind == "whole":
        step = facts.multiple_of or 1
        base = st.integers(math.ceil(facts.low / step), math.floor(facts.high / step)).map(lambda n: n * step)
    elif facts.kind == "number":
        base = st.floats(facts.low, facts.high, exclude_min=facts.low_open, exclude_max=facts.high_open)
    elif facts.kind == "list" and facts.items.startswith("whole numbers"):
        base = st.lists(st.sampled_from([64, 512, 768, 1024]), max_size=3)
    elif facts.kind == "list":
        base = st.lists(st.text(max_size=30), max_size=3)
    elif facts.kind == "table":
        whole = facts.key == "adapter.block_ranks"
        numbers = st.integers(0, 64) if whole else st.floats(0.01, 100)
        patterns = st.sampled_from([r"mid_block\..*", ".*attn2.to_[kv]", "it's", '".*"', "\u00fc b=c", "a#b"])
        base = st.dictionaries(patterns, numbers, max_size=3)
    else:
        base = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=30)
    return base | st.none() if facts.optional else base


OF_OTHER_METHODS = {f"adapter.{key}" for key, (fits, _) in FITS_SOME_METHODS.items() if "lora" not in fits}
FREE = {
    key: facts
    for key, facts in recipe_fields().items()
    if key not in ("name", "family", "adapter.method", "adapter.targets", "preview.size", *OF_OTHER_METHODS)
    and key not in ("objective.weighting", "tokens.words")
    and "timestep" not in key
}


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(preset_names()), st.data())
def test_recipes_survive_toml_and_json(tmp_path_factory, name, data):
    keys = data.draw(st.lists(st.sampled_from(sorted(FREE)), max_size=8, unique=True))
    flat = preset_by_name(name).model_dump()
    for key in keys:
        table, _, leaf = key.rpartition(".")
        (flat[table] if table else flat)[leaf] = data.draw(_values(FREE[key]))
        if FREE[key].kind != "choice" and (flat[table] if table else flat)[leaf] == "none":
            (flat[table] if table else flat)[leaf] = "nothing"
    recipe = Recipe.model_validate(flat)
    folder = tmp_path_factory.mktemp("round")
    (folder / "r.toml").write_bytes(to_toml(recipe).encode())
    (folder / "r.json").write_text(json.dumps(recipe.model_dump(mode="json")))
    for again in (load_recipe(folder / "r.toml"), load_frozen(folder / "r.json")):
        assert again == recipe
        assert recipe_hash(again) == recipe_hash(recipe)


def test_written_toml_carries_reasons_where_kept_and_meanings_where_changed():
    recipe = apply_sets(preset("sd15", "style", "pocket"), ["adapter.rank=9"])
    text = to_toml(recipe)
    assert reasons("pocket-style")["train.batch_size"] in " ".join(text.replace("\n# ", " ").split())
    assert "Inner dimension of the factors" in text
    assert reasons("pocket-style")["adapter.rank"] not in text.replace("\n# ", " ")


def test_hash_depends_on_choices_and_not_on_the_name():
    recipe = preset("sd15", "style")
    assert recipe_hash(recipe) == recipe_hash(apply_sets(recipe, ["name=mine"]))
    assert recipe_hash(recipe) != recipe_hash(apply_sets(recipe, ["train.seed=1"]))
    assert len(recipe_hash(recipe)) == 64


@pytest.mark.parametrize("name", preset_names())
def test_another_way_of_preservation_has_its_own_weight(name):
    sets = ["preservation.mode=class_pictures", "preservation.class_prompt=a dog"]
    assert apply_sets(preset_by_name(name), sets).preservation.loss_weight == 1.0


def test_differences_accept_a_preset_as_name_or_recipe():
    recipe = apply_sets(preset("sd15", "style"), ["train.max_steps=3", "name=x"])
    assert differences(recipe, "sd15-style") == differences(recipe, preset("sd15", "style"))
    assert differences(preset("sd15", "style"), "sd15-style") == []


def test_every_field_is_described_for_forms_help_and_docs():
    for key, facts in recipe_fields().items():
        assert len(facts.doc) > 10, key
        assert facts.doc.endswith("."), key
        if facts.kind in ("whole", "number"):
            assert facts.low is not None, key
            assert facts.high is not None, key
        assert facts.allowed


def test_recipes_page_names_every_key_and_preset():
    from trainers.recipe_docs import recipes_page

    page = recipes_page()
    for key in recipe_fields():
        assert f"| `{key}` |" in page
    for name in preset_names():
        assert f"### {name}\n" in page
