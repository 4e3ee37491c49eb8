"""What a comparison is: axes, cells, their requests and the order of drawing."""

import pytest

from registry.errors import BadInput
from studio.compare.axes import AXES
from studio.compare.layout import layout, tables
from studio.compare.spec import MAX_CELLS, grown, in_order, make_spec, place_of, place_text
from studio.sampling.request import AdapterChoice, SampleRequest

BASE = SampleRequest(base="b", prompt="a cat", seed=7, steps=4, cfg=3.0)
VALUES = {
    "adapter": ["none", "a1"], "checkpoint": ["r@100", "none"], "weight": [0.5, 1.0], "prompt": ["x", "y"],
    "seed": [1, 2], "steps": [2, 3], "guidance": [1.0, 2.0], "scheduler": ["default", "Euler"],
}  # fmt: skip


@pytest.mark.parametrize("name", AXES)
def test_every_axis_changes_the_request_and_is_said(name: str):
    axes = {name: VALUES[name]} | ({"adapter": ["a1"]} if name == "weight" else {})
    spec = make_spec(BASE, axes)
    one, two = (spec.request(place) for place in spec.places())
    assert one != two
    assert spec.line((0,) * len(axes)) != spec.line((1, *(0,) * (len(axes) - 1)))
    start = AXES[name].start(BASE)
    assert make_spec(BASE, {name: [start]} if name != "weight" else axes).size >= 1


def test_cells_without_effect_are_one_request():
    spec = make_spec(BASE, {"adapter": ["none", "a1"], "weight": [0.0, 1.0]})
    requests = {place: spec.request(place) for place in spec.places()}
    assert requests[0, 0] == requests[0, 1] == requests[1, 0]
    assert requests[1, 1].adapters == (AdapterChoice(id="a1", weight=1.0),)


def test_weights_go_to_the_one_fixed_adapter_or_to_none():
    fixed = BASE.model_copy(update={"adapters": (AdapterChoice(id="f", weight=0.3),)})
    spec = make_spec(fixed, {"weight": [0.5, 0.0]})
    assert [one.weight for one in spec.request((0,)).adapters] == [0.5]
    assert spec.request((1,)).adapters == ()
    beside = make_spec(fixed, {"adapter": ["a1"], "weight": [0.7]}).request((0, 0))
    assert [(one.id, one.weight) for one in beside.adapters] == [("f", 0.3), ("a1", 0.7)]


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({}, "nothing to compare"),
        ({"colour": ["red"]}, "axis 'colour': is unknown"),
        ({"seed": []}, "has no value"),
        ({"weight": [1.0]}, "weights need an adapter"),
        ({"adapter": ["a"], "checkpoint": ["r@1"]}, "put RUN@STEP among the adapters"),
        ({"seed": range(50), "steps": range(1, 51)}, "has 2,500 cells"),
    ],
)
def test_what_cannot_be_compared_is_said_in_a_line(axes, said):
    with pytest.raises(BadInput, match=said):
        make_spec(BASE, {name: list(values) for name, values in axes.items()})
    assert MAX_CELLS == 2000


def test_a_value_out_of_range_names_its_field():
    with pytest.raises(BadInput, match="cfg"):
        make_spec(BASE, {"guidance": [900.0]}).request((0,))


def test_ends_are_drawn_first_then_halves():
    spec = make_spec(BASE, {"seed": list(range(5)), "steps": list(range(1, 6))})
    order = in_order(spec)
    assert sorted(order) == list(spec.places())
    assert set(order[:4]) == {(0, 0), (0, 4), (4, 0), (4, 4)}
    assert set(order[4:8]) == {(0, 2), (2, 0), (2, 4), (4, 2)}
    assert [place_of(place_text(place)) for place in order] == order


def test_growing_keeps_places_and_a_new_axis_begins_where_the_cells_are():
    spec = make_spec(BASE, {"seed": [1, 2]}, {"seed": ["one", "two"]})
    more = grown(spec, {"seed": [2, 3], "steps": [9]}, {})
    assert [row.values for row in more.axes] == [(1, 2, 3), (4, 9)]
    assert more.axes[0].labels == ("one", "two", "3")
    assert more.request((1, 0)) == spec.request((1,))


def test_tables_hold_every_cell_once():
    spec = make_spec(
        BASE, {"adapter": ["none", "a"], "prompt": ["x", "y", "z"], "seed": [1, 2], "steps": [4]}
    )
    laid = layout(spec)
    assert (laid.columns.name, laid.rows.name, [one.name for one in laid.others]) == (
        "adapter",
        "prompt",
        ["seed"],
    )
    found = tables(spec, laid)
    assert [table.title for table in found] == ["seed 1", "seed 2"]
    assert sorted(place for table in found for _, row in table.rows for place in row) == list(spec.places())
    turned = layout(spec, rows="adapter", columns="seed")
    assert (turned.rows.name, turned.columns.name) == ("adapter", "seed")
    with pytest.raises(BadInput, match="cannot be both"):
        layout(spec, "seed", "seed")
    with pytest.raises(BadInput, match="not part of this comparison"):
        layout(spec, "guidance")
