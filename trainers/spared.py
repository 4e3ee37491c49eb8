"""Libraries that a process does without: others import them on sight, needed or not."""

import sys


def spare(*libraries: str) -> None:
    """Have these imported by nobody in this process from now on, as if they were not installed.

    diffusers, transformers and PEFT load what they find: PEFT costs a sampler 3 s of its 12, bitsandbytes any
    process 2 s (2 cores, warm disk). What is loaded already stays. None in `sys.modules` is Python's own
    mark for "not to be imported" (language reference, 5.3.1); `importlib.util.find_spec` respects it.
    diffusers remembers what is installed: once it is loaded, nothing can be hidden from it any more.
    """
    if "diffusers" in sys.modules:
        return
    for library in libraries:
        if library not in sys.modules:
            sys.modules[library] = None  # type: ignore[assignment]
