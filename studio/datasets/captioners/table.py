"""The captioners and what can be asked of them. No torch: command line and pages read this."""

from dataclasses import asdict, dataclass
from typing import Any

from registry.errors import BadInput


@dataclass(frozen=True)
class CaptionerInfo:
    """A kind of model that writes captions."""

    name: str
    about: str  # one line for people
    model: str  # hub id that is used when none is given
    module: str  # of this package; its function `load(place, options, device)` gives a `base.Captioner`
    prompt: str  # used when none is given; "" = it takes none, or needs none
    style: str  # "sentences" or "tags"


CAPTIONERS: dict[str, CaptionerInfo] = {
    info.name: info
    for info in (
        CaptionerInfo(
            "florence2",
            "Florence-2: a paragraph on each picture; small and quick",
            "florence-community/Florence-2-base",
            "florence",
            "<MORE_DETAILED_CAPTION>",
            "sentences",
        ),
        CaptionerInfo(
            "blip",
            "BLIP: one short sentence",
            "Salesforce/blip-image-captioning-large",
            "blip",
            "",
            "sentences",
        ),
        CaptionerInfo(
            "qwen",
            "Qwen2-VL and Qwen2.5-VL: follows a prompt; large",
            "Qwen/Qwen2.5-VL-3B-Instruct",
            "qwen",
            "Describe this picture in one or two plain sentences: what is there, where, how it looks. "
            "Begin with what it shows.",
            "sentences",
        ),
        CaptionerInfo(
            "wd",
            "WD tagger: tags for drawings, separated by commas",
            "SmilingWolf/wd-vit-tagger-v3",
            "tagger",
            "",
            "tags",
        ),
    )
}
DEFAULT = "florence2"


@dataclass(frozen=True)
class CaptionOptions:
    """What to write captions with.

    Args:
        captioner: A key of CAPTIONERS.
        model: Local folder or hub id; "" = the captioner's own.
        revision: Commit, tag or branch of a hub id; "" = the newest, whose commit is then told.
        prompt: What the model is asked; "" = the captioner's own.
        max_tokens: Longest caption in tokens, 1 to 1024.
        threshold: Least probability of a general tag, 0 to 1 (tagger).
        character_threshold: The same of a character's name; high, because a wrong name is worse than none.
        leave_out: Tags that are never written (tagger).
        batch: Pictures at once, 1 to 64; halved when memory runs out.
    """

    captioner: str = DEFAULT
    model: str = ""
    revision: str = ""
    prompt: str = ""
    max_tokens: int = 200
    threshold: float = 0.35
    character_threshold: float = 0.85
    leave_out: tuple[str, ...] = ()
    batch: int = 4

    @property
    def info(self) -> CaptionerInfo:
        """The row of the table.

        Raises:
            BadInput: no such captioner.
        """
        if self.captioner not in CAPTIONERS:
            raise BadInput("captioner", f"{self.captioner!r} is not known", f"use {', '.join(CAPTIONERS)}")
        return CAPTIONERS[self.captioner]

    def checked(self) -> "CaptionOptions":
        """The same, when everything is in range.

        Raises:
            BadInput: names the option.
        """
        _ = self.info
        for name, value, low, high in (
            ("max tokens", self.max_tokens, 1, 1024),
            ("threshold", self.threshold, 0, 1),
            ("character threshold", self.character_threshold, 0, 1),
            ("batch", self.batch, 1, 64),
        ):
            if not low <= value <= high:
                raise BadInput(name, f"is {value:g}", f"use {low} to {high}")
        return self

    def to_json(self) -> dict[str, Any]:
        """For the child."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "CaptionOptions":
        """Inverse of `to_json`."""
        known: dict[str, Any] = {**values, "leave_out": tuple(values["leave_out"])}
        return cls(**known)
