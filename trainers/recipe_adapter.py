"""The adapter section of a recipe: which method, which layers, how wide; see `recipe_fields`."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from trainers.recipe_section import Alpha, BlockRanks, Needs, Rank, Section, check_pattern

_RANKED = ("lora", "rslora", "dora", "loha", "lokr", "pissa")
ADDED = Needs("adapter.method", (*_RANKED, "oft"))  # not to a full fine-tune
HAVE_AB = ("lora", "rslora", "dora", "pissa")  # methods whose update is B A
_TURNS = "oft has no strength, a turn has only its blocks"
# Fields that mean nothing with some methods: what they fit, and why not the others.
FITS_SOME_METHODS: dict[str, tuple[tuple[str, ...], str]] = {
    "alpha": (_RANKED, _TURNS),
    "conv_alpha": (_RANKED, _TURNS),
    "text_alpha": (_RANKED, _TURNS),
    "conv_rank": (_RANKED, "PEFT's oft adds up overlapping patches of a 3x3 convolution and breaks the base"),
    "dropout": (
        ("lora", "rslora", "dora", "loha", "lokr"),
        "PEFT's oft ignores it, and pissa would drop parts of the base",
    ),
    "lokr_factor": (("lokr",), "only lokr has Kronecker factors"),
    "lokr_decompose_both": (("lokr",), "only lokr has Kronecker factors"),
    "tucker": (("loha", "lokr"), "only loha and lokr have that form"),
    "oft_block": (("oft",), "only oft has blocks"),
    "pissa_iterations": (("pissa",), "only pissa decomposes the base"),
}


def _fits(field: str) -> Needs:
    """The mark of a field of that table."""
    return Needs("adapter.method", FITS_SOME_METHODS[field][0])


class AdapterSection(Section):
    """What is added to the frozen base."""

    method: Literal["lora", "rslora", "dora", "loha", "lokr", "oft", "pissa", "full"] = "lora"
    """What is added to a weight W. lora: (alpha / rank) B A, which every tool reads. rslora: scaled by
    alpha / sqrt(rank). dora: length and direction of W apart. loha: two low ranks multiplied entry by entry.
    lokr: a Kronecker product, the smallest files. oft: W turned, nothing stretched. pissa: lora that starts
    from W's own largest directions; saved as a lora of twice the rank. full: nothing is added, the base's own
    weights learn (DreamBooth); the result is a new base, as large as the old one; rates near 1e-6."""
    rank: Annotated[Rank, Needs("adapter.method", _RANKED)] = 16
    """Inner dimension of the factors on linear layers (not oft). More = more capacity, larger file."""
    alpha: Annotated[Alpha | None, _fits("alpha")] = None
    """The update is scaled by alpha / rank (rslora: alpha / sqrt(rank)); none = the rank, so a scale of 1."""
    conv_rank: Annotated[int, Field(ge=0, le=1024), _fits("conv_rank"), Needs("family.convolutions")] = 0
    """Rank on the 3x3 convolutions of the UNet; 0 = off."""
    conv_alpha: Annotated[Alpha | None, _fits("conv_alpha"), Needs("adapter.conv_rank")] = None
    """Alpha of the convolutions; none = conv_rank."""
    block_ranks: Annotated[BlockRanks, ADDED] = Field(default_factory=dict)
    """Rank by regular expression that must match a layer's whole path: "mid_block.*" = 4. The first match
    counts, 0 leaves the layer out, alpha moves along. Layers of text encoders begin with their encoder's
    name."""
    lokr_factor: Annotated[int, Field(ge=-1, le=1024), _fits("lokr_factor")] = -1
    """lokr: side of the small Kronecker factor, or near it when a layer does not divide; -1 = square root."""
    lokr_decompose_both: Annotated[bool, _fits("lokr_decompose_both")] = False
    """lokr: also give the small factor a low rank, where that is smaller."""
    tucker: Annotated[bool, _fits("tucker")] = False
    """loha and lokr: 3x3 convolutions through a small core, about a ninth of the parameters."""
    oft_block: Annotated[int, Field(ge=2, le=256), _fits("oft_block")] = 32
    """oft: inputs that are turned together. Larger = more capacity; layers that it does not divide take the
    nearest size that does."""
    pissa_iterations: Annotated[int, Field(ge=0, le=64), _fits("pissa_iterations")] = 0
    """pissa: steps of a fast approximate decomposition (4 to 16 usual); 0 = exact, slow on large bases."""
    dropout: Annotated[float, Field(ge=0, lt=1), _fits("dropout")] = 0.0
    """Share dropped in training, 0 to below 1: of an adapter's inputs; loha, lokr: of the update's rows."""
    targets: Annotated[str, Field(max_length=2000), ADDED] = ""
    """Regular expression that a module's whole path in the denoiser must match; empty = the family's list."""
    train_text_encoder: bool = False
    """Also train an adapter on the text encoder (on all CLIP encoders of a base that has several)."""
    train_t5: Annotated[bool, Needs("family.t5")] = False
    """Also train an adapter on T5, where the base has it: slow, large, and read by few other programs."""
    text_rank: Annotated[Rank | None, Needs("adapter.text")] = None
    """Rank on the text encoder; none = rank."""
    text_alpha: Annotated[Alpha | None, _fits("text_alpha"), Needs("adapter.text")] = None
    """Alpha on the text encoder; none = text_rank."""
    text_encoder_until: Annotated[float, Field(gt=0, le=1), Needs("adapter.text")] = 1.0
    """Fraction of the steps after which the text encoder's adapter is frozen."""

    @field_validator("targets")
    @classmethod
    def _targets_compile(cls, value: str) -> str:
        return check_pattern(value)

    @field_validator("block_ranks")
    @classmethod
    def _oft_has_no_ranks(cls, value: dict[str, int], info: Any) -> dict[str, int]:
        if info.data.get("method") == "oft" and any(value.values()):
            raise ValueError("left out, or oft takes only 0 in it, which leaves layers out")
        return value

    @field_validator(*FITS_SOME_METHODS)
    @classmethod
    def _fits_the_method(cls, value: Any, info: Any) -> Any:
        default = cls.model_fields[info.field_name].get_default(call_default_factory=True)
        methods, why = FITS_SOME_METHODS[info.field_name]
        chosen = info.data.get("method", "lora")
        # A full fine-tune passes over what presets say of these.
        if chosen not in (*methods, "full") and value != default:
            usual = "none" if default is None else str(default).lower()  # presets have other values
            raise ValueError(f"{usual} with {chosen}: {why}")
        return value

    @property
    def scale_alpha(self) -> float:
        """Alpha in force on linear layers: `alpha`, or the rank."""
        return float(self.rank) if self.alpha is None else self.alpha

    @property
    def scale_conv_alpha(self) -> float:
        """Alpha in force on convolutions: `conv_alpha`, or conv_rank."""
        return float(self.conv_rank) if self.conv_alpha is None else self.conv_alpha

    @property
    def text_encoder_rank(self) -> int:
        """Rank in force on the text encoder: `text_rank`, or the rank."""
        return self.rank if self.text_rank is None else self.text_rank

    @property
    def scale_text_alpha(self) -> float:
        """Alpha in force on the text encoder: `text_alpha`, or its rank."""
        return float(self.text_encoder_rank) if self.text_alpha is None else self.text_alpha
