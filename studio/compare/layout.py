"""How the cells of a comparison lie on a page: rows, columns, and a table for each value of the rest."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

from registry.errors import BadInput
from studio.compare.axes import AXES
from studio.compare.spec import AxisValues, Place, Spec


@dataclass(frozen=True)
class Layout:
    """Which axes are rows and columns; None = a single one."""

    rows: AxisValues | None
    columns: AxisValues | None
    others: tuple[AxisValues, ...]


@dataclass(frozen=True)
class Table:
    """Cells at one value of each other axis."""

    title: str  # those values in words; "" = there is no other axis
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Place, ...]], ...]


def layout(spec: Spec, rows: str = "", columns: str = "") -> Layout:
    """Rows and columns by name, "" = as it reads best: adapters side by side, the longest of the rest below.

    Raises:
        BadInput: there is no such axis, or both are the same.
    """
    varied = spec.varied or list(spec.axes[:1])
    for name in filter(None, (rows, columns)):
        if spec.axis(name) is None:
            known = ", ".join(row.name for row in spec.axes)
            raise BadInput(f"axis {name[:40]!r}", "is not part of this comparison", f"there is {known}")
    if rows and rows == columns:
        raise BadInput(f"axis {rows!r}", "cannot be both rows and columns", "choose another one")
    across = spec.axis(columns) if columns else next((one for one in varied if one.name != rows), None)
    left = [one for one in varied if across is None or one.name != across.name]
    down = spec.axis(rows) if rows else next(iter(left), None)
    taken = {one.name for one in (across, down) if one is not None}
    return Layout(down, across, tuple(one for one in spec.varied if one.name not in taken))


def tables(spec: Spec, laid: Layout) -> list[Table]:
    """One table for each combination of values of the other axes."""
    return [
        table(spec, laid, {one.name: index for one, index in zip(laid.others, indices, strict=True)})
        for indices in product(*(range(len(one.values)) for one in laid.others))
    ]


def table(spec: Spec, laid: Layout, fixed: Mapping[str, int]) -> Table:
    """The table at these indices of the other axes."""

    def place(row: int, column: int) -> Place:
        at = dict(fixed)
        if laid.rows is not None:
            at[laid.rows.name] = row
        if laid.columns is not None:
            at[laid.columns.name] = column
        return tuple(at.get(one.name, 0) for one in spec.axes)

    across = range(len(laid.columns.values)) if laid.columns else range(1)
    down = range(len(laid.rows.values)) if laid.rows else range(1)
    title = " · ".join(said(one, fixed[one.name]) for one in laid.others)
    rows = tuple(
        (said(laid.rows, row) if laid.rows else "", tuple(place(row, column) for column in across))
        for row in down
    )
    return Table(title, tuple(said(laid.columns, i) if laid.columns else "" for i in across), rows)


def said(one: AxisValues, index: int) -> str:
    """A value as a label."""
    return AXES[one.name].say(one.values[index], one.label(index))
