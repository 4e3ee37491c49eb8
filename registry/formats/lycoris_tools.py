"""Other methods than LoRA on their way out: PEFT folders, proof of what was written, and who loads it.

Who loads what was read in the tools' sources (2026): ComfyUI and Forge divide DoRA's `dora_scale` of shape
(out, 1) by the length of W, not of W + change; A1111 and InvokeAI take it per input.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.errors import BadInput
from registry.formats import lycoris
from registry.formats.factors import DoraFactors, LokrFactors, OftBlocks, OftFactors, factors_error
from registry.formats.families import PEFT_ROOT, TEXT_ROOT, family_format
from registry.formats.internal import AdapterForm, component_of
from registry.formats.tensors import Array, cast
from registry.formats.tools import Judge, Proof, ToolReport

_MAGNITUDES = (".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.weight")
_LOADS, _NO, _PARTLY = "loads", "no", "partly"
_KOHYA_NAMES = "reads kohya names only"
# (layout, method) -> tool -> verdict and note.
WHO_LOADS: dict[tuple[str, str], dict[str, tuple[str, str]]] = {
    ("kohya", "loha"): {
        "diffusers": (_NO, "raises: keys without 'lora' in their names"),
        "ComfyUI": (_LOADS, ""),
        "A1111": (_LOADS, ""),
        "Forge": (_LOADS, ""),
        "InvokeAI": (_LOADS, ""),
        "kohya sd-scripts": (_LOADS, "with the LyCORIS package"),
    },
    ("kohya", "dora"): {
        "diffusers": (_PARTLY, "drops dora_scale with a warning"),
        "ComfyUI": (_PARTLY, "divides by the length of W instead of W + change: rows a little too long"),
        "A1111": (_NO, "takes dora_scale per input"),
        "Forge": (_PARTLY, "divides by the length of W instead of W + change: rows a little too long"),
        "InvokeAI": (_NO, "takes dora_scale per input"),
        "kohya sd-scripts": (_LOADS, "with the LyCORIS package"),
    },
    ("kohya", "oft"): {
        "diffusers": (_NO, "raises: keys without 'lora' in their names"),
        "ComfyUI": (_LOADS, ""),
        "A1111": (_LOADS, ""),
        "Forge": (_LOADS, ""),
        "InvokeAI": (_NO, "has no OFT"),
        "kohya sd-scripts": (_LOADS, "networks.oft, and with the LyCORIS package"),
    },
    ("diffusers", "dora"): {
        "diffusers": (_LOADS, ""),
        "ComfyUI": (_NO, "drops lora_magnitude_vector"),
        "A1111": (_NO, _KOHYA_NAMES),
        "Forge": (_NO, "drops lora_magnitude_vector"),
        "InvokeAI": (_NO, _KOHYA_NAMES),
        "kohya sd-scripts": (_NO, _KOHYA_NAMES),
    },
}
WHO_LOADS["kohya", "lokr"] = WHO_LOADS["kohya", "loha"]
WHO_LOADS["kohya", "full"] = WHO_LOADS["kohya", "norm"] = WHO_LOADS["kohya", "loha"]


def prove(form: AdapterForm, written: AdapterForm, judge: Judge) -> Proof:
    """`Judge.prove` over all modules: those of other methods by what they do to a stand-in weight."""
    plain = judge.prove(AdapterForm(form.family, written.modules))
    errors = {
        name: factors_error(got, form.others[name])
        for name, got in written.others.items()
        if name in form.others
    }
    missing = (*plain.missing, *(name for name in form.others if name not in errors))
    worst = max(errors, key=lambda name: errors[name], default="")
    matched = plain.matched + sum(error <= judge.tolerance for error in errors.values())
    total = plain.modules + len(form.others)
    if errors.get(worst, 0.0) < plain.worst_error:
        return Proof(total, matched, missing, plain.worst_error, plain.worst_module)
    return Proof(total, matched, missing, errors.get(worst, 0.0), worst or plain.worst_module)


def with_others(reports: tuple[ToolReport, ...], form: AdapterForm, layout: str) -> tuple[ToolReport, ...]:
    """Reports on the plain LoRA modules of a file, made to speak of its other modules too."""
    if not form.others:
        return reports
    by_method: dict[str, list[str]] = {}
    for module, factors in form.others.items():
        by_method.setdefault(factors.method, []).append(module)
    return tuple(_with_methods(report, form, layout, by_method) for report in reports)


def _with_methods(
    report: ToolReport, form: AdapterForm, layout: str, by_method: Mapping[str, list[str]]
) -> ToolReport:
    found, missing, notes = report.matched, list(report.missing), [report.note if form.modules else ""]
    verdicts = [report.verdict] if form.modules else []
    for method, modules in by_method.items():
        verdict, note = WHO_LOADS.get((layout, method), {}).get(report.tool, (_NO, "not known to read it"))
        if report.tool == "InvokeAI" and _hides_its_family(form):
            verdict = _NO
            note = "does not recognise a LoKr of SD1.5 with a factored w2 and no text encoder"
        verdicts.append(verdict)
        notes.append(note)
        if verdict == _LOADS:
            found += len(modules)
        else:
            missing += modules
    verdict = verdicts[0] if len(set(verdicts)) == 1 else _PARTLY
    if not found and _PARTLY not in verdicts:
        verdict = _NO
    text = "; ".join(dict.fromkeys(filter(None, notes)))
    total = report.modules + len(form.others)
    return ToolReport(report.tool, verdict, total, found, tuple(missing), report.worst_error, text)


def _hides_its_family(form: AdapterForm) -> bool:
    """Whether InvokeAI cannot tell the family: it looks at text encoders or at whole factors."""
    reads = [f for f in form.others.values() if isinstance(f, LokrFactors)]
    return form.family == "sd15" and form.components == ("unet",) and any(f.w2 is None for f in reads)


def write_peft(form: AdapterForm) -> dict[str, tuple[dict[str, Array], dict[str, Any]]]:
    """Subfolder ("" for the denoiser) -> tensors and PEFT's configuration, as the run that made it had them.

    Raises:
        BadInput: the file has no such configuration, so PEFT could not build the layers.
    """
    names = family_format(form.family)
    parts: dict[str, tuple[dict[str, Array], dict[str, Any]]] = {}
    for component in form.components:
        config = form.configs.get(component)
        if config is None or form.of(component):
            raise BadInput(
                "the peft layout",
                "needs the configuration that only our own files have",
                "use --format kohya",
            )
        tensors: dict[str, Array] = {}
        for module, factors in form.others.items():
            if component_of(module) != component:
                continue
            path = module.partition(".")[2]
            if component not in names.projected:  # as the class has it in memory, see `peft`
                path = path.removeprefix(TEXT_ROOT)
            tensors |= {
                f"{PEFT_ROOT}{path}.{part}": value for part, value in lycoris.peft_parts(factors).items()
            }
        values = {"task_type": None, "inference_mode": True, **config}
        parts["" if component == names.denoiser else component] = tensors, values
    return parts


def stored(tensors: Mapping[str, Array], dtype: str) -> dict[str, NDArray[np.generic]]:
    """`cast`, but magnitudes stay fp32: half precision would be off by more than training moved them."""
    kept = {name: values for name, values in tensors.items() if name.endswith(_MAGNITUDES)}
    return cast(tensors, dtype) | {name: np.asarray(v, np.float32, order="C") for name, v in kept.items()}


def notes(form: AdapterForm, layout: str) -> tuple[str, ...]:
    """What a person should know of an export of other methods."""
    found: list[str] = []
    kinds = {type(factors) for factors in form.others.values()}
    if layout == "kohya" and DoraFactors in kinds:
        found.append(
            "no tool but LyCORIS reads this DoRA as it was trained; in diffusers use --format diffusers"
        )
    if kinds & {OftFactors, OftBlocks}:
        found.append("OFT turns weights: its effect on a base other than its own may differ")
    return tuple(found)
