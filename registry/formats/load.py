"""Any adapter file that we can read -> `AdapterForm`."""

from dataclasses import replace
from pathlib import Path

from registry.errors import BadInput
from registry.formats.header import Header, read_header
from registry.formats.inspect import AdapterFacts, facts_of
from registry.formats.internal import AdapterForm
from registry.formats.peft_config import PeftConfig
from registry.formats.reading import read
from registry.formats.tensors import read_tensors
from registry.formats.words import split


def load_adapter(
    path: Path, family: str = "", peft: PeftConfig | None = None
) -> tuple[AdapterForm, AdapterFacts, Header]:
    """The adapter in `path`, what its header says, and the header.

    Args:
        path: A safetensors file.
        family: Overrides what the file looks like; "" = as inspected.
        peft: What the catalog knows of the strength of a file of PEFT's; None = what lies beside the file.

    Raises:
        BadInput: the file is unsound, holds values that are not finite, or nothing that we can read.
    """
    header = read_header(path)
    facts = facts_of(path, header, peft)
    words, tensors = split(read_tensors(path, header))
    chosen = family or facts.family
    metadata = header.metadata
    if facts.peft is not None:
        tensors = {facts.peft.name(key): value for key, value in tensors.items()}
        metadata = metadata | facts.peft.metadata(chosen)
    if facts.method == "embedding":
        return AdapterForm(chosen, words=words), facts, header
    if facts.foreign:
        wrong = f"holds {facts.method} weights"
        raise BadInput(str(path), wrong, "only LoRA, DoRA, LoHa, LoKr, OFT and full differences can be read")
    try:
        form = replace(read(tensors, metadata, chosen), words=words)
    except BadInput as error:
        if str(path) in error.thing:
            raise
        raise BadInput(f"{path}, {error.thing}", error.wrong, error.do) from error
    return form, replace(facts, ignored=form.ignored), header
