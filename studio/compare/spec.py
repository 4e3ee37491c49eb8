"""What a comparison is: a base request, and axes whose values are put into it. Cells are their product."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from registry.errors import BadInput
from studio.compare.axes import AXES, OF_ADAPTERS, Draft, Value, axis, spoken
from studio.sampling.keys import acts
from studio.sampling.request import AdapterChoice, SampleRequest

MAX_CELLS = 2000
Place = tuple[int, ...]  # index of the cell's value on each axis


class AxisValues(BaseModel):
    """One axis of a comparison."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    values: tuple[Value, ...]
    labels: tuple[str, ...] = ()
    """How each value is said; kept, so that a comparison can be read when an adapter is gone."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.name not in AXES:
            raise ValueError(f"axis {self.name!r} is unknown; there are {', '.join(AXES)}")
        if not self.values:
            raise ValueError(f"axis {self.name} has no value")
        if len(set(self.values)) < len(self.values):
            raise ValueError(f"axis {self.name} has a value twice")
        if self.labels and len(self.labels) != len(self.values):
            raise ValueError(f"axis {self.name} has {len(self.labels)} labels for {len(self.values)} values")
        return self

    def label(self, index: int) -> str:
        """How value `index` is said."""
        return self.labels[index] if self.labels else spoken(self.values[index])


class Spec(BaseModel):
    """A comparison."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: SampleRequest
    """What all cells share; one picture."""
    axes: tuple[AxisValues, ...] = ()
    weight: Annotated[float, Field(ge=-4, le=4)] = 1.0
    """Strength of the adapters on the axis where there is no axis of weights."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        names = [one.name for one in self.axes]
        if len(set(names)) < len(names):
            raise ValueError("an axis is there twice")
        if not names:
            raise ValueError("there is nothing to compare: give an axis")
        if self.base.count != 1:
            raise ValueError("the base request is for one picture")
        if all(name in names for name in OF_ADAPTERS):
            raise ValueError("adapters and checkpoints are one axis: put RUN@STEP among the adapters")
        of_adapter = any(name in names for name in OF_ADAPTERS)
        if "weight" in names and not of_adapter and len(self.base.adapters) != 1:
            raise ValueError("weights need an adapter: add an axis of adapters or checkpoints")
        return self

    @property
    def size(self) -> int:
        """How many cells."""
        return prod(len(one.values) for one in self.axes)

    @property
    def varied(self) -> list[AxisValues]:
        """Axes with more than one value."""
        return [one for one in self.axes if len(one.values) > 1]

    def axis(self, name: str) -> AxisValues | None:
        """The axis of this name, if it is there."""
        return next((one for one in self.axes if one.name == name), None)

    def values_at(self, place: Place) -> dict[str, Value]:
        """Axis -> value of a cell."""
        return {one.name: one.values[index] for one, index in zip(self.axes, place, strict=True)}

    def texts_at(self, place: Place) -> dict[str, str]:
        """Axis -> value of a cell, in words."""
        return {one.name: one.label(index) for one, index in zip(self.axes, place, strict=True)}

    def line(self, place: Place) -> str:
        """A cell in words: what tells it from others."""
        said = [
            AXES[one.name].say(one.values[index], one.label(index))
            for one, index in zip(self.axes, place, strict=True)
            if len(one.values) > 1
        ]
        return " · ".join(said) or "the only cell"

    def places(self) -> Iterator[Place]:
        """All cells, row by row."""
        return product(*(range(len(one.values)) for one in self.axes))

    def request(self, place: Place) -> SampleRequest:
        """What a cell is drawn from. Adapters that do not act are left out: such cells are one and the same.

        Raises:
            BadInput: a value is out of range.
        """
        draft = Draft()
        for name, value in self.values_at(place).items():
            AXES[name].change(draft, value)
        values: dict[str, Any] = {**dict(self.base), **draft.fields}
        try:
            values["adapters"] = self._adapters(draft)
            return SampleRequest(**values)
        except ValidationError as error:
            raise _complaint(error) from None

    def _adapters(self, draft: Draft) -> tuple[AdapterChoice, ...]:
        fixed = self.base.adapters
        about = any(one.name in OF_ADAPTERS for one in self.axes)
        if draft.weight is not None and not about:
            fixed = (fixed[0].model_copy(update={"weight": draft.weight}),)
        chosen = [choice for choice in fixed if acts(choice)]
        if draft.adapter:
            weight = self.weight if draft.weight is None else draft.weight
            choice = AdapterChoice(id=draft.adapter, weight=weight)
            chosen += [choice] if acts(choice) else []
        return tuple(chosen)


def make_spec(
    base: Mapping[str, Any] | SampleRequest,
    axes: Mapping[str, Sequence[Value]],
    labels: Mapping[str, Sequence[str]] | None = None,
    *,
    weight: float = 1.0,
) -> Spec:
    """A sound spec.

    Args:
        base: What all cells share.
        axes: Name -> values, in the order in which they are shown.
        labels: Name -> how each value is said.
        weight: See `Spec.weight`.

    Raises:
        BadInput: in one line.
    """
    for name in axes:
        axis(name)
    try:
        rows = tuple(
            AxisValues(
                name=name,
                values=tuple(dict.fromkeys(values)),
                labels=_labels(values, (labels or {}).get(name, ())),
            )
            for name, values in axes.items()
        )
        request = base if isinstance(base, SampleRequest) else SampleRequest(**base)
        spec = Spec(base=request, axes=rows, weight=weight)
    except ValidationError as error:
        raise _complaint(error) from None
    if spec.size > MAX_CELLS:
        shape = " x ".join(str(len(row.values)) for row in spec.axes)
        do = f"at most {MAX_CELLS:,}: leave out values, or make several comparisons"
        raise BadInput(f"comparison {shape}", f"has {spec.size:,} cells", do)
    return spec


def grown(spec: Spec, more: Mapping[str, Sequence[Value]], labels: Mapping[str, Sequence[str]]) -> Spec:
    """The spec with further values; an axis that is new begins with what the cells have without it.

    Raises:
        BadInput: as `make_spec`.
    """
    axes = {row.name: list(row.values) for row in spec.axes}
    said = {row.name: [row.label(index) for index in range(len(row.values))] for row in spec.axes}
    for name, values in more.items():
        if name not in axes:
            about = any(row.name in OF_ADAPTERS for row in spec.axes)
            start = spec.weight if name == "weight" and about else axis(name).start(spec.base)
            axes[name], said[name] = [start], [spoken(start)]
        texts = labels.get(name) or [spoken(value) for value in values]
        for value, text in zip(values, texts, strict=True):
            if value not in axes[name]:
                axes[name].append(value)
                said[name].append(text)
    return make_spec(spec.base, axes, said, weight=spec.weight)


def place_text(place: Place) -> str:
    """A place as the catalog writes it: "2/0/1"."""
    return "/".join(map(str, place))


def place_of(text: str) -> Place:
    """Inverse of `place_text`."""
    return tuple(int(part) for part in text.split("/"))


def in_order(spec: Spec) -> list[Place]:
    """The cells in the order in which they are drawn: ends first, then halves, so all of it is seen early.

    Each index of an axis has a level: 0 for both ends, then the middle, then the middles between. Cells go by
    the sum of their levels.
    """
    levels = [_levels(len(one.values)) for one in spec.axes]
    return sorted(spec.places(), key=lambda place: (sum(levels[i][at] for i, at in enumerate(place)), place))


def _levels(count: int) -> list[int]:
    """Level of each index of an axis."""
    found = [0] * count
    spans, level = [(0, count - 1)], 1
    while spans:
        halves: list[tuple[int, int]] = []
        for low, high in spans:
            if high - low < 2:
                continue
            middle = (low + high) // 2
            found[middle] = level
            halves += [(low, middle), (middle, high)]
        spans, level = halves, level + 1
    return found


def _labels(values: Sequence[Value], labels: Sequence[str]) -> tuple[str, ...]:
    """Labels of the values that are left when those that come twice are taken out."""
    if not labels:
        return ()
    kept: dict[Value, str] = {}
    for value, label in zip(values, labels, strict=True):
        kept.setdefault(value, label)
    return tuple(kept.values())


def _complaint(error: ValidationError) -> BadInput:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part not in ("str", "int", "float"))
    text = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if field and isinstance(value := first.get("input"), str | int | float):
        return BadInput(f"{field} {value!r:.60}", text[:1].lower() + text[1:], "change it")
    wrong, _, do = text.partition(": ")
    return BadInput(field or "comparison", wrong, do or "change it")
