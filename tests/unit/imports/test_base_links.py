"""The base of an imported adapter: found by the hashes that its file names, or left open."""

import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from registry.hashing import sha256_file
from registry.records import Adapter, Base
from studio.adapters import show
from studio.base_links import named_hashes
from studio.bases import add_base, remove_base
from tests.support.bases import save_base
from tests.support.imports import take_in, write_adapter


def add_file(ws, tmp_path, name, seed=0, family="sd15"):
    """A base in one file, as the catalog has it; its content does not matter here."""
    path = tmp_path / f"{name}.safetensors"
    save_file({"w": np.random.default_rng(seed).standard_normal((600, 1000)).astype(np.float32)}, path)
    record = Base(name=name, family=family, location=str(path), kind="file", weight_hash=sha256_file(path))
    return ws.catalog.add(record), path


def window(path):
    return hashlib.sha256(path.read_bytes()[0x100000:0x110000]).hexdigest()[:8]


@pytest.mark.parametrize("key", ["studio.base_hash", "ss_new_sd_model_hash"])
@pytest.mark.parametrize("digits", [64, 10])
def test_a_hash_of_the_whole_file_is_a_link(key, digits, ws, folder, tmp_path):
    base, path = add_file(ws, tmp_path, "dream")
    write_adapter(folder / "a.safetensors", **{key: sha256_file(path)[:digits].upper()})
    take_in(ws, folder)
    row = ws.catalog.get(Adapter, "a")
    assert row.base_id == base.id
    shown = show(ws, "a")
    assert shown["base_name"] == "dream"
    assert shown["base_why"] == f"{key} {sha256_file(path)[: min(12, digits)]} is the hash of base dream"


def test_our_own_hash_of_a_folder_is_a_link(ws, folder):
    pocket = ws.catalog.get(Base, "pocket")
    write_adapter(folder / "a.safetensors", **{"studio.base_hash": pocket.weight_hash})
    take_in(ws, folder)
    assert ws.catalog.get(Adapter, "a").base_id == pocket.id


def test_the_short_hash_counts_alone_and_when_it_is_one_base_s(ws, folder, tmp_path):
    base, path = add_file(ws, tmp_path, "dream")
    short = {"ss_sd_model_hash": window(path)}
    write_adapter(folder / "a.safetensors", 1, **short)
    write_adapter(folder / "b.safetensors", 2, **short, ss_new_sd_model_hash="ab" * 32)
    take_in(ws, folder)
    assert ws.catalog.get(Adapter, "a").base_id == base.id
    assert "(the 8 digits of a part of it)" in show(ws, "a")["base_why"]
    assert ws.catalog.get(Adapter, "b").base_id == ""
    other = tmp_path / "other.safetensors"
    other.write_bytes(path.read_bytes()[:-4] + b"\0\0\1\0")  # the same window, another model
    ws.catalog.add(
        Base(name="other", family="sd15", location=str(other), kind="file", weight_hash=sha256_file(other))
    )
    write_adapter(folder / "c.safetensors", 3, **short)
    take_in(ws, folder)
    assert ws.catalog.get(Adapter, "c").base_id == ""


def test_another_family_s_base_is_no_link(ws, folder, tmp_path):
    _, path = add_file(ws, tmp_path, "xl", family="sdxl")
    write_adapter(folder / "a.safetensors", ss_new_sd_model_hash=sha256_file(path))
    take_in(ws, folder)
    assert ws.catalog.get(Adapter, "a").base_id == ""


def test_an_unidentified_adapter_gets_its_base_s_family(ws, folder, tmp_path):
    base, path = add_file(ws, tmp_path, "xl", family="sdxl")
    tensors = {"lora_unet_conv_in.lora_down.weight": np.ones((2, 4, 3, 3), np.float32),
               "lora_unet_conv_in.lora_up.weight": np.ones((8, 2, 1, 1), np.float32)}  # fmt: skip
    save_file(tensors, folder / "a.safetensors", {"ss_new_sd_model_hash": sha256_file(path)})
    report = take_in(ws, folder)
    row = ws.catalog.get(Adapter, "a")
    assert (row.family, row.base_id, report.unidentified) == ("sdxl", base.id, [])
    assert row.metadata["identified"]["reason"].endswith("is the hash of base xl, which is sdxl")


def test_a_base_that_is_added_later_finds_its_adapters_and_one_that_goes_lets_them_go(ws, folder, tmp_path):
    place = save_base("sd15", tmp_path / "tiny")
    first = add_base(ws, "first", str(place))
    remove_base(ws, "first")
    write_adapter(folder / "a.safetensors", 1, **{"studio.base_hash": first.weight_hash})
    write_adapter(folder / "b.safetensors", 2, **{"studio.base_hash": "ab" * 32})
    take_in(ws, folder)
    assert ws.catalog.get(Adapter, "a").base_id == ""
    again = add_base(ws, "again", str(place))
    assert ws.catalog.get(Adapter, "a").base_id == again.id
    assert ws.catalog.get(Adapter, "b").base_id == ""
    remove_base(ws, "again")
    assert ws.catalog.get(Adapter, "a").base_id == ""


@pytest.mark.parametrize(
    ("value", "found"),
    [("0x" + "AB" * 32, "ab" * 32), ("abcdef12", "abcdef12"), ("abcdef1", ""), ("abcdef123", ""),
     ("None", ""), ("../x", ""), ("", ""), ("a" * 65, "")],
)  # fmt: skip
def test_only_hashes_are_hashes(value, found):
    assert named_hashes({"ss_sd_model_hash": value}).get("ss_sd_model_hash", "") == found
    assert json.dumps(named_hashes({}))
