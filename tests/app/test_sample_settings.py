"""The form of the Sample page takes the settings of a picture, chosen or dropped."""

import json
from pathlib import Path

from PIL import Image as Pixels

from registry.records import Adapter, Base, Sample
from studio.sampling.metadata.writing import write_picture
from studio.sampling.mixes import mix_text
from studio.sampling.request import AdapterChoice, SampleRequest
from studio.sampling.task import TaskAdapter
from studio.workspace import Workspace
from tests.app.conftest import Open
from trainers.families import FAMILIES


def test_settings_of_a_picture_come_back(filled: Workspace, open_page: Open):
    sample = next(s for s in filled.catalog.list(Sample) if s.adapters)
    at = open_page(filled, "sample", sample=f"{sample.id}/2")
    assert at.text_area(key="s-prompt").value == sample.request["prompt"]
    assert at.number_input(key="s-seed").value == sample.request["seed"] + 2
    assert at.toggle(key="s-lock").value is True
    strengths = [slider.value for slider in at.slider if slider.label == "Strength"]
    assert strengths == [use.weight for use in sample.adapters]


def test_a_dropped_picture_fills_in_its_settings(filled: Workspace, open_page: Open, tmp_path: Path):
    sample = next(s for s in filled.catalog.list(Sample) if s.adapters)
    adapter = filled.catalog.get(Adapter, sample.adapters[0].adapter_id)
    choice = AdapterChoice(id=adapter.id, weight=0.65, schedule=((0.0, 0.0), (1.0, 1.0)))
    base = filled.catalog.get(Base, "pocket")
    told = SampleRequest(
        base=base.id, adapters=(choice,), partial=True, prompt="a blue ring", seed=41, steps=9, clip_skip=2,
        width=64, height=64, memory="slicing", precision="int8", speed="compiled",
        format="webp", quality=70,
    )  # fmt: skip
    used = TaskAdapter(
        id=adapter.id, name=adapter.name, path="", tensor_sha256=adapter.tensor_sha256, file_sha256="",
        weight=0.65, text_weight=0.65,
    )  # fmt: skip
    path = tmp_path / "told.png"
    blank = Pixels.new("RGB", (64, 64))
    write_picture(blank, path, told, base_name=base.name, base_hash=base.weight_hash, adapters=[used])
    at = open_page(filled, "sample")
    at.file_uploader(key="s-like").set_value([("told.png", path.read_bytes(), "image/png")]).run()
    assert not at.exception
    assert at.text_area(key="s-prompt").value == "a blue ring"
    assert (at.number_input(key="s-seed").value, at.slider(key="s-steps").value) == (41, 9)
    assert at.number_input(key="s-clip_skip").value == 2
    next(one for one in at.button if one.label == "Make pictures").click().run()
    assert not any("neon" in error.value for error in at.error)
    made = filled.catalog.list(Sample, limit=1)[0]
    assert made.request["adapters"][0]["schedule"] == [[0.0, 0.0], [1.0, 1.0]]
    kept = {made.request[name] for name in ("memory", "precision", "speed", "format", "quality")}
    assert kept == {"slicing", "int8", "compiled", "webp", 70}

    at.file_uploader(key="s-like").set_value([("x.png", b"hello", "image/png")]).run()
    assert not at.exception
    assert any("is not a sound PNG" in error.value for error in at.error)


def toy(ws: Workspace, family: str, variant: str = "") -> Base:
    """A base of the catalog as a folder with what asking for pictures looks at."""
    place = ws.home / "toys" / f"{family}{variant}"
    for part, config in ((FAMILIES[family].denoiser, {}), ("vae", {"sample_size": 64})):
        (place / part).mkdir(parents=True)
        (place / part / "config.json").write_text(json.dumps(config))
    (place / "model_index.json").write_text("{}")
    return ws.catalog.add(
        Base(name=place.name, family=family, variant=variant, kind="folder", location=ws.relative(place))
    )


def test_what_only_some_bases_know_comes_back_with_them(filled: Workspace, open_page: Open):
    flux, xl, refiner = toy(filled, "flux1"), toy(filled, "sdxl"), toy(filled, "sdxl", "eps-refiner")
    for base, values in ((flux, {"true_cfg": 3.5}), (xl, {"refiner": refiner.id, "refiner_at": 0.7})):
        request = SampleRequest(base=base.id, prompt="x", width=64, height=64, **values)
        sample = filled.catalog.add(Sample(base_id=base.id, request=request.model_dump(mode="json")))
        at = open_page(filled, "sample", sample=f"{sample.id}/0")
        next(one for one in at.button if one.label == "Make pictures").click().run()
        assert not at.exception
        made = filled.catalog.list(Sample, limit=1)[0]
        assert made.id != sample.id, [error.value for error in at.error]
        assert {name: made.request[name] for name in values} == values
    at.selectbox(key="s-base").set_value(filled.catalog.get(Base, "pocket").id).run()
    names = {one.key for one in (*at.slider, *at.selectbox)}
    assert not names & {"s-true_cfg", "s-refiner", "s-refiner_at"}


def test_a_refiner_that_is_not_here_is_said_to_be_missing(filled: Workspace, open_page: Open):
    request = SampleRequest(base=toy(filled, "sdxl").id, prompt="x", refiner="gone", refiner_at=0.02)
    sample = filled.catalog.add(Sample(base_id=request.base, request=request.model_dump(mode="json")))
    at = open_page(filled, "sample", sample=f"{sample.id}/0")
    assert not at.exception
    assert any("Its refiner is not here" in item.value for item in at.markdown)
    refiner = toy(filled, "sdxl", "eps-refiner")
    filled.catalog.update(Sample, sample.id, request={**sample.request, "refiner": refiner.id})
    at = open_page(filled, "sample", sample=f"{sample.id}/0")
    assert not at.exception
    assert at.slider(key="s-refiner_at").value == 0.02
    assert not any("is not here" in item.value for item in at.markdown)


def test_more_than_the_sliders_reach_comes_back(filled: Workspace, open_page: Open):
    base = filled.catalog.get(Base, "pocket")
    request = SampleRequest(base=base.id, prompt="x", steps=400, cfg=33.3, width=64, height=64)
    sample = filled.catalog.add(Sample(base_id=base.id, request=request.model_dump(mode="json")))
    at = open_page(filled, "sample", sample=f"{sample.id}/0")
    assert not at.exception
    assert (at.slider(key="s-steps").value, at.slider(key="s-cfg").value) == (400, 33.3)


def test_a_dropped_mix_takes_the_place_of_what_is_chosen(filled: Workspace, open_page: Open):
    adapters = filled.catalog.list(Adapter, family="sd15", trashed_at=None, limit=2)
    choices = [
        AdapterChoice(id=adapters[0].id, weight=0.35, blocks={"MID": 0.5}),
        AdapterChoice(id=adapters[1].id, weight=-0.5),
    ]
    text = mix_text(filled, filled.catalog.get(Base, "pocket"), choices)
    at = open_page(filled, "sample")
    at.selectbox(key="s-base").set_value(filled.catalog.get(Base, "pocket").id).run()
    before = [error.value for error in at.error]  # of a job that failed
    at.file_uploader(key="s-mix-file").set_value([("mix.json", text.encode(), "application/json")]).run()
    assert not at.exception
    assert [error.value for error in at.error] == before
    assert [slider.value for slider in at.slider if slider.label == "Strength"] == [0.35, -0.5]
    at.file_uploader(key="s-mix-file").set_value([("x.json", b"{", "application/json")]).run()
    assert any("is not a mix of adapters" in error.value for error in at.error)
    assert [slider.value for slider in at.slider if slider.label == "Strength"] == [0.35, -0.5]


def test_pictures_are_asked_for_in_the_chosen_format(filled: Workspace, open_page: Open):
    at = open_page(filled, "sample")
    at.text_area(key="s-prompt").set_value("a red circle")
    next(one for one in at.button_group if one.key == "s-format").set_value("webp").run()
    next(one for one in at.button if one.label == "Make pictures").click().run()
    assert not at.exception
    assert filled.catalog.list(Sample, limit=1)[0].request["format"] == "webp"
