"""One comparison: its grid, live while it is drawn, the slider, blind votes, and what can be done with it."""

import streamlit as st

from registry.records import Base, Comparison, Evaluation, Sample
from studio.app import shell, state
from studio.app.components import notice, sample_form
from studio.app.components.compare_arena import arena
from studio.app.components.compare_parts import GridCell, Side, grid, slider
from studio.app.routes import picture_url
from studio.app.words import duration, md, plural
from studio.compare.axes import AXES, spoken
from studio.compare.grids import Cell, Progress, cells_of, progress, spec_of
from studio.compare.layout import Layout, layout, table
from studio.compare.spec import Place, Spec, place_of, place_text
from studio.sampling.schedulers import DEFAULT

VIEWS = {"grid": "Grid", "slider": "Slider", "arena": "Blind vote"}
NOTES = {"waiting": "waits", "drawing": "being drawn", "failed": "failed", "missing": "not drawn"}
CELLS = {"Small": 110, "Medium": 170, "Large": 260}


def detail(comparison: Comparison) -> None:
    """The page of one comparison."""
    spec = spec_of(comparison)
    shell.heading(comparison.name)
    notice.show()
    st.markdown(f":gray[{md(_facts(comparison, spec))}]")
    _actions(comparison, spec)
    if (view := st.session_state.pop("c-next-view", None)) is not None:
        st.session_state["c-view"] = view
    chosen = st.segmented_control(
        "What to see",
        list(VIEWS),
        format_func=VIEWS.__getitem__,
        key="c-view",
        default="grid",
        required=True,
        label_visibility="collapsed",
    )
    if chosen == "arena":
        arena(comparison, spec)
        return
    if chosen == "slider":
        _slider(comparison, spec)
        return
    laid = _chosen_layout(comparison, spec)
    fixed = _fixed(comparison, laid)
    size = CELLS[st.session_state.get("c-size", "Medium")]
    cells = cells_of(shell.workspace(), comparison)
    found = progress(shell.workspace(), comparison, cells)
    if found.live:
        _live(comparison.id, laid, fixed, size)
    else:
        _state(comparison, found, cells)
        _grid(comparison, spec, cells, laid, fixed, size)


def _facts(comparison: Comparison, spec: Spec) -> str:
    """What all cells share."""
    base = shell.workspace().catalog.find(Base, comparison.base_id)
    said = [base.name if base else "base gone", f"{spec.base.width} × {spec.base.height} pixels"]
    varied = {row.name for row in spec.varied}
    shared = {row.name: row.label(0) for row in spec.axes if row.name not in varied}
    shared |= {
        name: spoken(AXES[name].start(spec.base))
        for name in ("prompt", "steps", "guidance", "scheduler", "seed")
        if name not in varied and name not in shared
    }
    said += [AXES[name].say(text, text) for name, text in shared.items() if text not in ("", DEFAULT)]
    return " · ".join(said)


def _actions(comparison: Comparison, spec: Spec) -> None:
    """Download, grow, remove."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        shell.link("compare", "All comparisons", icon=":material/arrow_back:")
        for sheet in shell.workspace().catalog.list(Evaluation, comparison_id=comparison.id, limit=1):
            shell.link("compare", "The evidence", icon=":material/fact_check:", evidence=sheet.id)
        with st.popover("Download", icon=":material/download:"):
            _downloads(comparison)
        with st.popover("Add a row or column", icon=":material/add:"):
            _grow(comparison, spec)
        with st.popover("Remove", icon=":material/delete:"):
            st.markdown("The pictures go to the trash, the votes are gone for good.")
            if st.button("Remove it", key="c-remove"):
                _remove(comparison)


def _downloads(comparison: Comparison) -> None:
    from studio.compare.outputs import file_stem, made_as

    workspace, stem = shell.workspace(), file_stem(comparison)
    kinds = {
        "png": ("Contact sheet (PNG)", "image/png"),
        "html": ("Page with slider (HTML)", "text/html"),
        "json": ("Facts (JSON)", "application/json"),
    }
    for kind, (label, mime) in kinds.items():
        st.download_button(
            label,
            lambda kind=kind: made_as(workspace, comparison, kind),
            f"{stem}.{kind}",
            mime,
            key=f"c-download-{kind}",
            on_click="ignore",
            width="stretch",
        )
    st.caption("The page can be sent to someone: it needs no network.")


def _grow(comparison: Comparison, spec: Spec) -> None:
    """Another value on an axis, or another axis."""
    known = [row.name for row in spec.axes]
    taken = "checkpoint" if "adapter" in known else "adapter"
    able = [
        name for name in AXES if name in known or name != taken or not {"adapter", "checkpoint"} & set(known)
    ]
    name = st.selectbox("What", able, format_func=lambda name: AXES[name].label, key="c-grow-axis")
    hint = {"adapter": "name, RUN@STEP or none", "checkpoint": "RUN:STEP or RUN:all", "prompt": "a prompt"}
    text = st.text_input("New value", key=f"c-grow-{name}", placeholder=hint.get(name, "for example 2"))
    if st.button("Add it", key="c-grow-go", disabled=not text):
        from studio.compare.build import labels_for
        from studio.compare.grids import grow

        with shell.guarded():
            texts = [text] if name == "prompt" else [part.strip() for part in text.split(",") if part.strip()]
            workspace = shell.workspace()
            values = {name: [value for one in texts for value in AXES[name].read(workspace, one)]}
            grow(workspace, comparison, values, labels_for(workspace, values))
            state.wake_worker()
            st.rerun()


def _remove(comparison: Comparison) -> None:
    from studio.compare.grids import remove

    with shell.guarded():
        count = remove(shell.workspace(), comparison)
        shell.note(f"Removed {comparison.name}; {plural(count, 'picture')} went to the trash")
        shell.stay()


def _chosen_layout(comparison: Comparison, spec: Spec) -> Layout:
    """Rows and columns, as a person wants them."""
    usual = layout(spec)
    names = [row.name for row in spec.varied]
    if len(names) < 2:
        return usual
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        key = f"c-columns-{comparison.id}"
        start = names.index(usual.columns.name) if usual.columns else 0
        columns = st.selectbox("Across", names, start, format_func=_label, key=key, width=170)
        rest = [name for name in names if name != columns]
        key = f"c-rows-{comparison.id}-{columns}"
        rows = st.selectbox("Down", rest, format_func=_label, key=key, width=170)
        st.segmented_control("Pictures", list(CELLS), default="Medium", required=True, key="c-size")
    return layout(spec, rows or "", columns)


def _label(name: str) -> str:
    return AXES[name].label


def _fixed(comparison: Comparison, laid: Layout) -> dict[str, int]:
    """Which value of each other axis is shown."""
    if not laid.others:
        return {}
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        return {
            one.name: st.selectbox(
                f"{_label(one.name)} shown", range(len(one.values)), format_func=one.label,
                key=f"c-at-{comparison.id}-{one.name}", width=220,
            )
            or 0
            for one in laid.others
        }  # fmt: skip


@st.fragment(run_every=1.0)
def _live(comparison_id: str, laid: Layout, fixed: dict[str, int], size: int) -> None:
    """The grid while it is drawn; the page is shown anew when it is done."""
    workspace = shell.workspace()
    comparison = workspace.catalog.find(Comparison, comparison_id)
    if comparison is None:
        st.rerun()
    cells = cells_of(workspace, comparison)
    found = progress(workspace, comparison, cells)
    if not found.live:
        st.rerun()
    with st.container(key="panel-compare-live"):
        left = f", about {duration(found.seconds_left)} left" if found.seconds_left else ""
        st.progress(found.share, text=f"{found.drawn:,} of {found.total:,} drawn{left}")
        with st.container(horizontal=True, vertical_alignment="center"):
            if st.button("Stop", icon=":material/stop:", key="c-stop"):
                from studio.compare.grids import stop

                stop(workspace, comparison)
                st.rerun()
            if workspace.holder() is None:
                st.caption("No worker runs: nothing is drawn until one is started.")
                if st.button("Start the worker", icon=":material/play_arrow:", key="c-wake"):
                    with shell.guarded():
                        state.wake_worker()
    _grid(comparison, spec_of(comparison), cells, laid, fixed, size)


def _state(comparison: Comparison, found: Progress, cells: dict[Place, Cell]) -> None:
    """What is missing, and the button that goes on."""
    undone = found.failed + found.missing
    if not undone:
        return
    error = next((cell.error for cell in cells.values() if cell.state == "failed"), "")
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f":orange[{plural(undone, 'cell')} not drawn.] {md(error)}")
        if st.button("Go on", icon=":material/play_arrow:", key="c-go-on"):
            from studio.compare.grids import go_on

            with shell.guarded():
                go_on(shell.workspace(), comparison)
                state.wake_worker()
                st.rerun()


def _grid(
    comparison: Comparison,
    spec: Spec,
    cells: dict[Place, Cell],
    laid: Layout,
    fixed: dict[str, int],
    size: int,
) -> None:
    shown = table(spec, laid, fixed)
    sides = {st.session_state.get(f"c-{side}-{comparison.id}"): side for side in ("left", "right")}
    rows = [
        (label, [_cell(spec, place, cells.get(place), sides) for place in places])
        for label, places in shown.rows
    ]
    if acted := grid(shown.columns, rows, key=f"cells-{comparison.id}", cell=size):
        _act(comparison, cells, *acted)


def _cell(spec: Spec, place: Place, cell: Cell | None, sides: dict[str | None, str]) -> GridCell:
    id = place_text(place)
    drawn = cell is not None and cell.state == "drawn"
    return GridCell(
        id=id,
        text=spec.line(place),
        url=picture_url("sample", cell.sample_id, 0) if cell and drawn else "",
        state=cell.state if cell else "missing",
        note=NOTES.get(cell.state if cell else "missing", ""),
        error=cell.error if cell else "",
        side=sides.get(id, ""),
    )


def _act(comparison: Comparison, cells: dict[Place, Cell], action: str, id: str) -> None:
    """What was chosen at a large picture."""
    cell = cells.get(place_of(id))
    if cell is None:
        return
    if action == "use":
        sample = shell.workspace().catalog.find(Sample, cell.sample_id)
        if sample is not None:
            sample_form.put_back(sample.request)
            shell.go("sample")
        return
    st.session_state[f"c-{action}-{comparison.id}"] = id
    if action == "right":
        st.session_state["c-next-view"] = "slider"
    st.rerun()


def _slider(comparison: Comparison, spec: Spec) -> None:
    """Any two cells over each other."""
    cells = cells_of(shell.workspace(), comparison)
    drawn = [place_text(place) for place in sorted(cells) if cells[place].state == "drawn"]
    if len(drawn) < 2:
        shell.empty("slider", "Two pictures are needed", "They appear here as soon as they are drawn.")
        return
    left_key, right_key = (f"c-{side}-{comparison.id}" for side in ("left", "right"))
    if st.session_state.get(left_key) not in drawn:
        st.session_state[left_key] = drawn[0]
    if st.session_state.get(right_key) not in drawn:
        st.session_state[right_key] = _beside(spec, cells, st.session_state[left_key]) or drawn[1]
    picked: dict[str, str] = {}
    for column, side, label in zip(st.columns(2), ("left", "right"), ("Left (A)", "Right (B)"), strict=True):
        key = f"c-{side}-{comparison.id}"
        with column:
            index = drawn.index(st.session_state[key])
            picked[side] = st.selectbox(
                label, drawn, index, format_func=lambda id: spec.line(place_of(id)), key=f"{key}-{index}-pick"
            )
        if picked[side] != st.session_state[key]:
            st.session_state[key] = picked[side]
            st.rerun()
    left, right = place_of(picked["left"]), place_of(picked["right"])
    names = _names(spec, left, right)
    slider(_side(cells[left], names[0]), _side(cells[right], names[1]), key=f"slider-{comparison.id}")
    st.caption(
        "Drag the line, or use the arrow keys. A click on a picture of the grid puts it on either side."
    )


def _side(cell: Cell, name: str) -> Side:
    return Side(picture_url("sample", cell.sample_id, 0) + "?full", name)


def _beside(spec: Spec, cells: dict[Place, Cell], id: str) -> str:
    """A drawn cell that differs from this one on one axis, the first if it can be; "" = there is none."""
    here = place_of(id)
    for axis, row in enumerate(spec.axes):
        for index in range(len(row.values)):
            there = (*here[:axis], index, *here[axis + 1 :])
            cell = cells.get(there)
            if cell and cell.state == "drawn" and cell.sample_id != cells[here].sample_id:
                return place_text(there)
    return ""


def _names(spec: Spec, left: Place, right: Place) -> tuple[str, str]:
    """Both in words, what they share left out."""
    one, two = spec.line(left).split(" · "), spec.line(right).split(" · ")
    shorter = tuple(
        " · ".join(part for part in mine if part not in other) for mine, other in ((one, two), (two, one))
    )
    return (shorter[0], shorter[1]) if all(shorter) else (spec.line(left), spec.line(right))
