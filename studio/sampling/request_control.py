"""How a request says what steers it. No torch: command line and pages read this."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from studio.sampling.control.kinds import KINDS


class ControlChoice(BaseModel):
    """A picture that steers the drawing, through a ControlNet or T2I-Adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Annotated[str, Field(pattern=f"^({'|'.join(KINDS)})$")]
    """What is made of the picture: canny, depth, pose, ...; none = it is a finished map."""
    model: str = ""
    """Catalog id of the ControlNet; none = the one that reads this kind, if there is only one."""
    image: Annotated[str, Field(min_length=1)]
    """The picture: a file. It is scaled to cover the size, then cut in the middle."""
    weight: Annotated[float, Field(ge=0, le=4)] = 1.0
    """How strongly it steers; 0 = not at all."""
    start: Annotated[float, Field(ge=0, le=1)] = 0.0
    """From this part of the steps on, 0 to 1."""
    end: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Up to this part of the steps, 0 to 1."""
    preprocess: bool = True
    """Make the map from the picture; off = the picture is the map already."""
    preprocessor: str = ""
    """Folder or hub id of the model that reads depth or pose; none = the kind's own."""
    guess: bool = False
    """Steer only the half with the prompt (guess mode): for pictures without a prompt; SD1.5, SD2.1, SDXL."""

    @model_validator(mode="after")
    def _in_order(self) -> "ControlChoice":
        if self.start >= self.end:
            raise ValueError("start must be before end")
        return self
