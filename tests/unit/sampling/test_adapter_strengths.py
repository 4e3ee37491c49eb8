"""Factors over the steps and by block, as they are written and as they are meant."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import BadInput
from studio.sampling.request import AdapterChoice
from studio.sampling.strengths import check_blocks, factor_at, parse_blocks, parse_schedule

POINTS = st.lists(
    st.tuples(st.floats(0, 1), st.floats(-4, 4)), min_size=1, max_size=6, unique_by=lambda p: p[0]
)


@given(POINTS, st.floats(0, 1))
def test_straight_lines_between_points(points: list[tuple[float, float]], fraction: float):
    points = sorted(points)
    expected = np.interp(fraction, [p[0] for p in points], [p[1] for p in points])
    assert factor_at(points, fraction) == pytest.approx(expected, abs=1e-9)


def test_a_jump_counts_from_its_fraction_on():
    steps = ((0.0, 0.25), (0.5, 0.25), (0.5, 1.0))
    assert [factor_at(steps, f) for f in (0.0, 0.4999, 0.5, 1.0)] == [0.25, 0.25, 1.0, 1.0]
    assert factor_at((), 0.3) == 1.0


def test_what_is_written_on_the_command_line():
    assert parse_schedule("a: name:0=0,0.5=1") == ("a: name", ((0.0, 0.0), (0.5, 1.0)))
    assert parse_blocks("ink:MID=0.5,OUT00-05=0") == ("ink", {"MID": 0.5, "OUT00-05": 0.0})
    assert parse_blocks("ink:1,0,0,0,1,1,1,1,1,1,1,0.5")[1] | {} == {
        "TE": 1, "IN04": 0, "IN05": 0, "IN07": 0, "IN08": 1, "MID": 1,
        "OUT00": 1, "OUT01": 1, "OUT02": 1, "OUT03": 1, "OUT04": 1, "OUT05": 0.5,
    }  # fmt: skip
    for text in ("ink", "ink:", "ink:x=1=2", "ink:0.5", ":0=1"):
        with pytest.raises(BadInput, match="--adapter-schedule"):
            parse_schedule(text)
    for text in ("ink", "ink:", ":MID=1"):
        with pytest.raises(BadInput, match="--adapter-blocks"):
            parse_blocks(text)
    with pytest.raises(BadInput, match="block 'MIDDLE': is no block"):
        parse_blocks("ink:MIDDLE=1")


def test_what_a_request_refuses():
    assert AdapterChoice(id="a", schedule=((0, 1), (0.5, 0), (0.5, 1))).schedule[1] == (0.5, 0.0)
    for bad in ({"schedule": ((0.5, 1), (0.4, 1))}, {"schedule": ((2, 1),)}, {"schedule": ((0, 9),)},
                {"blocks": {"MID": 7}}, {"blocks": {"MID": float("nan")}}):  # fmt: skip
        with pytest.raises(ValueError, match=r"schedule|blocks"):
            AdapterChoice(id="a", **bad)  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadInput, match="adapter ink, block 'MIDDLE'"):
        check_blocks("ink", {"MIDDLE": 1.0})
