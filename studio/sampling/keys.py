"""What a picture is drawn from, as one hash: two requests with the same key give the same picture.

Base, adapters and files stand in it by content, so that a key outlives names, ids and places.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from registry.hashing import hash_json
from registry.records import Adapter, Base
from studio.sampling.request import AdapterChoice, SampleRequest

VERSION = 1  # of what is hashed
# Where a record stands in its place, or what changes nothing that is drawn.
_BY_CONTENT = {"base", "adapters", "refiner", "controls", "image", "mask"}
_WITHOUT_EFFECT = {"count", "partial", "template", "negative_template", "resolved"}
_OF_PICTURES = {
    "strength", "mask_blur", "mask_content", "only_masked", "mask_padding", "keep_unmasked", "outpaint",
}  # fmt: skip


def acts(choice: AdapterChoice) -> bool:
    """Whether an adapter changes the picture at all."""
    return choice.weight != 0 or choice.text_weight not in (None, 0)


def picture_key(
    request: SampleRequest,
    base: Base,
    adapters: Sequence[Adapter],
    refiner: Base | None,
    nets: Sequence[Base],
    files: Mapping[str, str],
) -> str:
    """Hex sha256 of all that the one picture of a request depends on; "" for a request of several.

    Args:
        request: Ready: its adapters, controls and embeddings are found.
        base: Of the request, as all that follows.
        adapters: In the order of `request.adapters`.
        refiner: None = none.
        nets: In the order of `request.controls`.
        files: File as the request names it -> sha256 of its bytes.
    """
    if request.count != 1:
        return ""
    left_out = _BY_CONTENT | _WITHOUT_EFFECT | (set() if request.image else _OF_PICTURES)
    if not request.subseed_strength:
        left_out |= {"subseed"}
    value: dict[str, Any] = request.model_dump(mode="json", exclude=left_out)
    value["prompt"], value["negative"] = request.texts(0)
    value["base"] = weights_of(base)
    value["adapters"] = [
        {**choice.model_dump(mode="json", exclude={"id"}), "tensors": adapter.tensor_sha256}
        for choice, adapter in zip(request.adapters, adapters, strict=True)
        if acts(choice)
    ]
    if refiner is None:
        del value["refiner_at"]
    else:
        value["refiner"] = weights_of(refiner)
    value["controls"] = [
        {
            **choice.model_dump(mode="json", exclude={"model", "image"}),
            "net": weights_of(net),
            "image": files[choice.image],
        }
        for choice, net in zip(request.controls, nets, strict=True)
    ]
    value["files"] = [files[name] for name in (request.image, request.mask) if name]
    return hash_json([VERSION, value])


def weights_of(base: Base) -> str:
    """What a base is, whatever it is called: its weights, at the hub its commit."""
    return base.weight_hash or f"{base.location}@{base.revision}"
