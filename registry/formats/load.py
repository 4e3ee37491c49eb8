"""Any adapter file that we can read -> `AdapterForm`."""

from dataclasses import replace
from pathlib import Path

from registry.errors import BadInput
from registry.formats import diffusers, kohya, lycoris
from registry.formats.header import Header, read_header
from registry.formats.inspect import AdapterFacts, facts_of
from registry.formats.internal import AdapterForm
from registry.formats.tensors import read_tensors
from registry.formats.words import split

READERS = {
    "kohya": kohya.read,
    "diffusers": diffusers.read,
    "diffusers-old": diffusers.read,
    "peft": diffusers.read,
}


def load_adapter(path: Path, family: str = "") -> tuple[AdapterForm, AdapterFacts, Header]:
    """The adapter in `path`, what its header says, and the header.

    Args:
        path: A safetensors file.
        family: Overrides what the file looks like; "" = as inspected.

    Raises:
        BadInput: the file is unsound, holds values that are not finite, or a method or layout that is
            not known.
    """
    header = read_header(path)
    facts = facts_of(path, header)
    if facts.method == "embedding":
        words, _ = split(read_tensors(path, header))
        return AdapterForm(family or facts.family, words=words), facts, header
    if facts.method not in ("lora", *lycoris.METHODS) or facts.layout not in READERS:
        raise BadInput(
            str(path),
            f"holds {facts.method} weights in {facts.layout} layout",
            "only LoRA, DoRA, LoHa, LoKr and OFT can be read",
        )
    chosen = family or facts.family
    try:
        words, tensors = split(read_tensors(path, header))
        if facts.method == "lora":
            form = READERS[facts.layout](tensors, header.metadata, chosen)
        else:
            form = lycoris.read(tensors, header.metadata, chosen, facts.layout)
        form = replace(form, words=words)
    except BadInput as error:
        if str(path) in error.thing:
            raise
        raise BadInput(f"{path}, {error.thing}", error.wrong, error.do) from error
    return form, facts, header
