"""Bases that only draw: the SDXL refiner and those made for inpainting."""

import shutil
from pathlib import Path

import pytest

from registry.errors import BadInput
from registry.records import Base
from studio.bases import add_base, detect_base
from studio.runs.checks import check_trainable
from studio.workspace import Workspace
from tests.support.bases import inpainting_parts, save_parts, save_refiner
from trainers.families import FAMILIES


def test_the_refiner_is_told_by_what_its_unet_reads(tmp_path: Path):
    folder = save_refiner(tmp_path / "refiner")
    facts = detect_base(str(folder))
    assert (facts.family, facts.variant) == ("sdxl", "eps-refiner")
    assert facts.reason == "reads the second text encoder alone"
    base = add_base(Workspace.open(tmp_path / "home"), "fine", str(folder))
    assert base.variant == "eps-refiner"


def test_a_refiner_still_needs_its_own_text_encoder(tmp_path: Path):
    folder = save_refiner(tmp_path / "refiner")
    next((folder / "text_encoder_2").glob("*.safetensors")).unlink()
    with pytest.raises(BadInput, match="text_encoder_2: has no weights"):
        detect_base(str(folder))
    shutil.rmtree(folder / "tokenizer_2")
    with pytest.raises(BadInput):
        detect_base(str(folder))


def test_fill_is_told_by_what_it_reads_beside_the_latents(tmp_path: Path):
    folder = save_parts(inpainting_parts("flux1"), "FluxFillPipeline", tmp_path / "fill")
    facts = detect_base(str(folder))
    assert (facts.family, facts.variant) == ("flux1", "fill")
    assert "a mask" in facts.reason


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_nine_channels_are_for_inpainting(tmp_path: Path, family: str):
    folder = save_parts(inpainting_parts(family), FAMILIES[family].pipeline, tmp_path / "nine")
    assert detect_base(str(folder)).variant.endswith("-inpaint")


@pytest.mark.parametrize(
    ("variant", "wrong"),
    [("eps-inpaint", "reads a mask"), ("v-inpaint", "reads a mask"), ("fill", "reads a mask"),
     ("eps-refiner", "is a refiner")],
)  # fmt: skip
def test_they_are_not_trained(variant: str, wrong: str):
    with pytest.raises(BadInput, match=f"base b: {wrong}"):
        check_trainable(Base(name="b", family="sdxl", variant=variant, location="x", kind="folder"))


@pytest.mark.parametrize("variant", ["eps", "v", "dev", "schnell", "medium", "large", ""])
def test_others_are(variant: str):
    check_trainable(Base(name="b", family="sdxl", variant=variant, location="x", kind="folder"))
