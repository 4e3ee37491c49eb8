"""Every failure gets its kind, exit code and one line; captions that teach nothing are named."""

import errno

import pytest
import torch

from registry.errors import BadInput, StudioError
from registry.files import storage_error
from trainers.families import FAMILIES
from trainers.families.base import BaseFiles
from trainers.guards import NotFinite, check_captions_differ, check_tokens, classify, dead_conditioning
from trainers.plan import assign_buckets
from trainers.recipe import DataSection
from trainers.rundir import ManifestItem


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


FULL = OSError(errno.ENOSPC, "No space left on device")
CASES = [
    (
        NotFinite("loss", 12, ["a.png", "b.png"]),
        "nan",
        3,
        "step 12: the loss is not finite (pictures: a.png, b.png)",
    ),
    (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        "oom",
        4,
        "gradient_checkpointing=true",
    ),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "oom", 4, "train.batch_size"),
    (MemoryError(), "oom", 4, "ran out of it"),
    (FULL, "disk", 5, "No space left"),
    (caused(storage_error("x", FULL), FULL), "disk", 5, "free some space"),
    (StudioError("x", "checkpoint 2 needs 9 MiB, the disk has 1 MiB free"), "disk", 5, "needs 9 MiB"),
    (BadInput("recipe", "is odd", "change it"), "input", 2, "recipe: is odd. change it."),
    (ZeroDivisionError("division\nby zero"), "error", 1, "ZeroDivisionError: division by zero"),
    (KeyboardInterrupt(), "error", 1, "KeyboardInterrupt"),
]


@pytest.mark.parametrize(("error", "kind", "code", "text"), CASES)
def test_failures_are_classified(error, kind, code, text):
    failure = classify(error)
    assert (failure.kind, failure.exit_code) == (kind, code)
    assert text in failure.reason
    assert "\n" not in failure.reason


def items(*captions: str):
    sources = [
        ManifestItem(image=f"{n}.png", name=f"{n}.png", pixel_hash="", width=64, height=64, caption=caption)
        for n, caption in enumerate(captions)
    ]
    return assign_buckets(sources, resolution=64, step=8, data=DataSection())[0]


def test_captions_that_teach_nothing():
    assert check_captions_differ(items("a cat", "a dog"), DataSection(), 0) == []
    assert "no picture has a caption" in check_captions_differ(items("", " "), DataSection(), 0)[0]
    assert check_captions_differ(items("a cat", ""), DataSection(trigger="zork"), 0) == [
        "1 of 2 pictures without a caption: 1.png"
    ]
    assert "all captions are the same" in check_captions_differ(items("a cat", "a cat"), DataSection(), 0)[0]


def test_captions_beyond_the_encoder_are_named(tiny_sd15):
    family = FAMILIES["sd15"].load_class()(
        BaseFiles(str(tiny_sd15)), dtype=torch.float32, device=torch.device("cpu")
    )
    warning, *more = check_tokens(family, items("red", "red " * 90, "red " * 75), DataSection(), 0)
    assert more == []
    assert "1 caption is longer" in warning
    assert "1.png (15 tokens)" in warning
    assert check_tokens(family, items("red " * 75), DataSection(trigger="zork"), 0)  # the trigger counts too


def test_conditioning_that_is_the_same_for_all_captions():
    """Of several encoders one may be dead; masks may well be equal."""
    ones, mask = torch.ones(1, 3, 4), torch.ones(1, 3, dtype=torch.int64)
    rows = [{"hidden": ones * n, "pooled": ones[0], "mask": mask} for n in range(3)]
    assert dead_conditioning(rows) == ["pooled"]
    assert dead_conditioning(rows[:1]) == []
