"""Hashes against their definitions, on bytes made by hand."""

import hashlib
import json
import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry import hashing
from registry.errors import BadInput
from registry.hashing import HashMemo, hash_adapter, hash_folder, hash_json, sha256_file


def safetensors(data: bytes, metadata: dict[str, str] | None = None) -> bytes:
    header = {"x": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}
    if metadata:
        header["__metadata__"] = metadata
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("size", [0, 1, 5000, 0xFFF00, 0x100000, 0x10FFFF, 0x110000, 2**21 - 5, 2**21 + 3])
def test_all_hashes_of_an_adapter(tmp_path, size):
    data = os.urandom(size)
    whole = safetensors(data, {"ss_note": "n"})
    path = tmp_path / "a.safetensors"
    path.write_bytes(whole)
    found = hash_adapter(path)
    assert found.sha256 == sha256_file(path) == sha(whole)
    assert found.autov2 == sha(whole)[:10]
    assert found.tensor_sha256 == sha(data)
    assert found.autov3 == sha(data)[:12]
    assert found.autov1 == sha(whole[0x100000:0x110000])[:8]


def test_the_tensor_hash_survives_other_metadata(tmp_path):
    plain, tagged = tmp_path / "a", tmp_path / "b"
    plain.write_bytes(safetensors(b"12345"))
    tagged.write_bytes(safetensors(b"12345", {"title": "t" * 5000}))
    assert hash_adapter(plain).tensor_sha256 == hash_adapter(tagged).tensor_sha256
    assert hash_adapter(plain).sha256 != hash_adapter(tagged).sha256


@pytest.mark.parametrize("content", [b"", b"1234567", (2**63).to_bytes(8, "little"), b"\x09" + b"\0" * 15])
def test_what_is_shorter_than_its_header_is_refused(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="is no safetensors file"):
        hash_adapter(path)


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none()))
def test_json_hash_does_not_depend_on_order(value):
    assert hash_json(value) == hash_json(dict(reversed(value.items())))


def test_json_hash_is_that_of_the_canonical_text():
    assert hash_json({"b": [1, 2.5], "a": "ä"}) == sha('{"a":"ä","b":[1,2.5]}'.encode())
    assert hash_json({"a": (1,)}) == hash_json({"a": [1]})
    assert hash_json({"a": 1}) != hash_json({"a": "1"})
    with pytest.raises(ValueError, match="JSON compliant"):
        hash_json([float("nan")])


def model(folder, config=b"{}"):
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_bytes(b"[]")
    (folder / "unet" / "config.json").write_bytes(config)
    (folder / "unet" / "weights.safetensors").write_bytes(b"w")
    return folder


def test_a_folder_is_its_weights_and_configs(tmp_path):
    first = model(tmp_path / "a")
    lines = [("model_index.json", b"[]"), ("unet/config.json", b"{}"), ("unet/weights.safetensors", b"w")]
    assert hash_folder(first) == sha("".join(f"{name}\0{sha(data)}\n" for name, data in lines).encode())

    second = model(tmp_path / "elsewhere")
    (second / "README.md").write_text("hello")
    (second / "preview.png").write_bytes(b"p")
    (second / ".cache").mkdir()
    (second / ".cache" / "download.json").write_text("{}")
    assert hash_folder(second) == hash_folder(first)
    assert hash_folder(model(tmp_path / "b", config=b"{ }")) != hash_folder(first)
    (second / "vae.safetensors").write_bytes(b"v")
    assert hash_folder(second) != hash_folder(first)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="holds no weights"):
        hash_folder(tmp_path / "empty")


def aged(path, data=b"x"):
    path.write_bytes(data)
    old = time.time() - 60
    os.utime(path, (old, old))
    return path


def test_the_memo_reads_a_file_once(tmp_path, monkeypatch):
    reads = []
    monkeypatch.setattr(hashing, "sha256_file", lambda path: reads.append(path) or sha(path.read_bytes()))
    file, memo = aged(tmp_path / "w"), HashMemo(tmp_path / "memo.json")
    assert memo.sha256(file) == HashMemo(tmp_path / "memo.json").sha256(file) == sha(b"x")
    assert len(reads) == 1
    aged(file, b"y")
    os.utime(file, (1, 1))
    assert memo.sha256(file) == sha(b"y")
    assert len(reads) == 2


def test_the_memo_does_not_trust_a_file_that_was_just_written(tmp_path):
    memo = HashMemo(tmp_path / "memo.json")
    file = tmp_path / "w"
    for data in (b"1", b"2", b"3"):  # may fall into one tick of the file system's clock
        file.write_bytes(data)
        assert memo.sha256(file) == sha(data)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe"])
def test_a_damaged_memo_only_costs_time(tmp_path, content):
    (tmp_path / "memo.json").write_bytes(content)
    file = aged(tmp_path / "w")
    assert HashMemo(tmp_path / "memo.json").sha256(file) == sha(b"x")
    assert HashMemo(file / "below a file" / "memo.json").sha256(file) == sha(b"x")
