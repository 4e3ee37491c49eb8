"""How strongly an adapter acts where and when: factors of blocks, and a factor that changes over the steps.

Blocks have the names that merging goes by, see `registry.formats.operations.strength`.
"""

from collections.abc import Mapping, Sequence

from registry.errors import BadInput

Schedule = tuple[tuple[float, float], ...]  # (fraction of the steps done, factor), by fraction
MOST_POINTS = 100
MOST_BLOCKS = 200
_SCHEDULE = "write for example ink:0=0,0.5=1"
_BLOCKS = "write for example ink:MID=0.5,OUT00-05=0"


def factor_at(schedule: Sequence[tuple[float, float]], fraction: float) -> float:
    """The factor at `fraction` (0 to 1), 1 without a schedule.

    Straight lines between the points; before the first its value, after the last its value. Of two points at
    the same fraction the second counts from there on, so that a factor can jump.
    """
    if not schedule:
        return 1.0
    before = schedule[0]
    for point in schedule:
        if point[0] > fraction:
            if point is schedule[0]:
                return point[1]
            share = (fraction - before[0]) / (point[0] - before[0])
            return before[1] + share * (point[1] - before[1])
        before = point
    return before[1]


def is_ordered(schedule: Sequence[tuple[float, float]]) -> bool:
    """Whether no point lies before the one in front of it."""
    fractions = [point[0] for point in schedule]
    return fractions == sorted(fractions)


def parse_schedule(text: str) -> tuple[str, Schedule]:
    """`NAME:0=0,0.5=1` -> name and points.

    Raises:
        BadInput: it is not that.
    """
    name, _, inner = text.rpartition(":")
    points: list[tuple[float, float]] = []
    for part in inner.split(","):
        fraction, _, factor = part.partition("=")
        try:
            points.append((float(fraction), float(factor)))
        except ValueError:
            raise BadInput(
                f"--adapter-schedule {text!r}", "is not NAME:FRACTION=FACTOR,...", _SCHEDULE
            ) from None
    if not name:
        raise BadInput(f"--adapter-schedule {text!r}", "names no adapter", _SCHEDULE)
    return name, tuple(points)


def parse_blocks(text: str) -> tuple[str, dict[str, float]]:
    """`NAME:BLOCK=FACTOR,BLOCK=FACTOR` or `NAME:` and a list of A1111 -> name and factors.

    Raises:
        BadInput: it is not that.
    """
    from registry.formats.operations.strength import block_factors  # numpy, which --help must not pay

    name, _, inner = text.rpartition(":")
    if not name or not inner:
        raise BadInput(f"--adapter-blocks {text!r}", "is not NAME:BLOCK=FACTOR,...", _BLOCKS)
    return name, block_factors(inner)


def check_blocks(adapter: str, blocks: Mapping[str, float]) -> None:
    """Refuse names that are no blocks.

    Raises:
        BadInput: names adapter and block.
    """
    from registry.formats.operations.strength import strength_of_blocks

    try:
        strength_of_blocks(blocks)
    except BadInput as error:
        raise BadInput(f"adapter {adapter}, {error.thing}", error.wrong, error.do) from error
