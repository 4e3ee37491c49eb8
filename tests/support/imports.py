"""Imports done in this process, and adapter files of every soundness."""

import json
import math
import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from registry.records import Job, JobState
from studio.imports.report import CheckReport, ImportReport
from studio.imports.submit import submit, submit_check
from studio.imports.task import perform
from studio.workspace import Workspace
from tests.support.adapters import make_form, write_run_file

SMALL = {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": (32, 768)}


def write_adapter(path: Path, seed: int = 0, **metadata: str) -> Path:
    """A small SD1.5 adapter; another seed, other weights."""
    return write_run_file(make_form(SMALL, seed=seed), path, **metadata)


def take_in(ws: Workspace, *sources: Path | str, **options: Any) -> ImportReport:
    """Import to the end."""
    return finish(ws, submit(ws, sources, **options))


def finish(ws: Workspace, job: Job) -> ImportReport:
    """What the worker's child does, here."""
    report = perform(ws, job)
    assert isinstance(report, ImportReport)
    ws.catalog.finish_job(job.id, JobState.DONE, result=report.to_dict())
    return report


def look_after(ws: Workspace, **options: Any) -> CheckReport:
    """Check all adapters."""
    job = submit_check(ws, **options)
    report = perform(ws, job)
    assert isinstance(report, CheckReport)
    ws.catalog.finish_job(job.id, JobState.DONE, result=report.to_dict())
    return report


def sparse_adapter(path: Path, size: int, number: int = 0, modules: int = 1) -> Path:
    """An adapter of about `size` bytes of weights that are zero, but for one that tells it from others.

    With `modules` > 1 its header is as long as that of an SDXL adapter of so many modules, alphas included.
    """
    rows = max(1, size // modules // (2 * (768 + 320)))
    header: dict[str, Any] = {"__metadata__": {"ss_base_model_version": "sd_v1"}}
    at = 0
    for place in range(modules):
        depth, layer = place % 10, ("to_k", "to_q", "to_v", "to_out_0")[place // 10 % 4]
        name = f"lora_unet_down_blocks_{place // 40}_attentions_0_transformer_blocks_{depth}_attn2_{layer}"
        for key, shape in (("lora_down.weight", (rows, 768)), ("lora_up.weight", (320, rows)), ("alpha", ())):
            end = at + 2 * math.prod(shape)
            header[f"{name}.{key}"] = tensor(at, end, shape, "F16")
            at = end
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text + struct.pack("<H", number % 30000 + 1))
        stream.truncate(8 + len(text) + at)
    return path


def pack(entries: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file from raw header entries: a dict, a JSON text or bytes."""
    if not isinstance(entries, bytes):
        entries = (entries if isinstance(entries, str) else json.dumps(entries)).encode()
    return struct.pack("<Q", len(entries) if length is None else length) + entries + data


def tensor(start: int = 0, end: int = 8, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict[str, Any]:
    """A header entry."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@cache
def bad_files() -> dict[str, tuple[bytes, str]]:
    """Name -> content and what its error must say: the first 23 bad files (the 24th is a base's matter)."""
    import pickle

    key = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight"
    up = {key.replace("lora_A", "lora_B"): np.ones((320, 4), np.float16)}
    whole = save({key: np.ones((4, 768), np.float16), **up})
    nan = save({key: np.full((4, 768), np.nan, np.float16), **up})
    twice = f'{{"a": {json.dumps(tensor())}, "a": {json.dumps(tensor(8, 16))}}}'
    many = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(120_000)}
    return {
        "01-empty": (b"", "is empty"),
        "02-seven-bytes": (b"1234567", "has 7 bytes"),
        "03-length": (pack({}, length=2**63), "claims a header of"),
        "04-longer-than-file": (pack({"a": tensor()}, length=999), "claims a header of 999 bytes"),
        "05-not-utf8": (pack(b'{"\xff": 1}'), "not UTF-8"),
        "06-not-json": (pack('{"a": '), "not JSON"),
        "07-overlap": (pack({"a": tensor(), "b": tensor(4, 12)}, b"0" * 12), "overlaps"),
        "08-hole": (pack({"a": tensor(), "b": tensor(12, 20)}, b"0" * 20), "hole of 4 bytes"),
        "09-cut-off": (whole[:-7], "is cut off"),
        "10-extra": (whole + b"123", "3 bytes too many"),
        "11-shape": (pack({"a": tensor(shape=(3, 2))}, b"0" * 8), "needs 24 bytes"),
        "12-overflow": (pack({"a": tensor(shape=(2**40, 2**40))}, b"0" * 8), "overflows"),
        "13-dtype": (pack({"a": tensor(dtype="F31")}, b"0" * 8), "unknown dtype"),
        "14-negative": (pack({"a": tensor(-8, 0)}), "negative offset"),
        "15-metadata": (pack({"__metadata__": {"k": 1}, "a": tensor()}, b"0" * 8), "not text"),
        "16-duplicate": (pack(twice, b"0" * 16), "twice"),
        "17-nan": (nan, f"not finite in tensor '{key}'"),
        "18-many": (pack(many), "the limit is 20000"),
        "19-pickle": (pickle.dumps({"a": [1]}, protocol=2) + b"\0" * 64, "is a pickle, which can run code"),
        "20-zip": (b"PK\x03\x04" + b"\0" * 90, "is a zip archive"),
        "21-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\n", "run git lfs pull"),
        "22-login-page": (b"<!DOCTYPE html><html><title>Log in</title></html>", "is a web page"),
        "23-no-adapter": (save({"encoder.weight": np.ones((2, 2), np.float32)}), "no adapter weights"),
    }  # fmt: skip
