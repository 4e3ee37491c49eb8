"""What the sections of a recipe are made of: types with their ranges, and the table that refuses what it does
not know."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def check_pattern(value: str) -> str:
    """A regular expression that compiles, as it was given.

    Raises:
        ValueError: it does not; pydantic puts it into its finding.
    """
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"a regular expression ({error})") from error
    return value


@dataclass(frozen=True)
class Needs:
    """Mark of a field that counts only where something else has a certain value.

    Args:
        what: Dotted key of another field, or a fact of `fitting.circumstances` ("family.flow").
        values: One of these; () = anything that is not off, 0, empty or none.
    """

    what: str
    values: tuple[object, ...] = ()

    def met(self, circumstances: Mapping[str, Any]) -> bool:
        """Whether the field counts, as far as this mark goes."""
        value = circumstances[self.what]
        return value in self.values if self.values else bool(value)


Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Rank = Annotated[int, Field(ge=1, le=1024)]
Alpha = Annotated[float, Field(gt=0, le=4096)]
LearningRate = Annotated[float, Field(gt=0, le=10)]
Side = Annotated[int, Field(ge=32, le=2048, multiple_of=8)]
Prompt = Annotated[str, Field(max_length=1000)]
Pattern = Annotated[str, Field(min_length=1, max_length=2000), AfterValidator(check_pattern)]
BlockRanks = Annotated[dict[Pattern, Annotated[int, Field(ge=0, le=1024)]], Field(max_length=64)]
# Samplers of the pictures that training draws; rows of `preview.SAMPLERS`.
SamplerName = Literal["default", "DDIM", "Euler", "DPM++ 2M", "DPM++ 2M Karras", "UniPC"]
DIFFUSION, FLOW = Needs("family.diffusion"), Needs("family.flow")  # how the family was trained
BlockFactors = Annotated[dict[Pattern, Annotated[float, Field(gt=0, le=100)]], Field(max_length=64)]


class Section(BaseModel):
    """A frozen table of the recipe that refuses unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _read_none(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        optional = {key for key, info in cls.model_fields.items() if NoneType in get_args(info.annotation)}
        return {key: None if value == "none" and key in optional else value for key, value in values.items()}
