"""What to compare: the form of a new comparison."""

from collections.abc import Sequence
from typing import Any

import streamlit as st

from registry.errors import BadInput, StudioError
from registry.records import Adapter, Base, Run
from studio.app import shell, state
from studio.app.components.pick_adapter import pick_adapter
from studio.app.words import duration, md, plural
from studio.sampling.schedulers import DEFAULT, scheduler_names

ADAPTERS = "compare-adapters"  # ids in session state
RUNS = 50  # offered, newest first
KEPT: Any = "session"
STRENGTHS = ("0", "0.25", "0.5", "0.75", "1", "1.25", "1.5")
SEEDS = ("1", "2", "3", "4")
STEPS = ("10", "20", "25", "30", "50")
GUIDANCES = ("1", "2", "3", "5", "7", "9")


def builder(bases: list[Base]) -> None:
    """The form, how much it will be, and the button."""
    _apply_address(bases)
    by_id = {base.id: base for base in bases}
    if st.session_state.get("c-base") not in by_id:
        st.session_state["c-base"] = bases[0].id
    left, right = st.columns([3, 2], gap="large")
    with left:
        base_id = st.selectbox(
            "Base model", list(by_id), format_func=lambda id: by_id[id].name, key="c-base", persist_state=KEPT
        )
        base = by_id[base_id]
        prompts = st.text_area(
            "What to draw: a prompt in each line",
            key="c-prompts",
            height=100,
            persist_state=KEPT,
            placeholder="a red circle on a white background\ntwo blue stars",
        )
        about = _adapters(base)
        weights = _chips("Strengths (LoRA weight)", STRENGTHS, "c-weights", ["1"]) if about else []
        seeds = _chips("Seeds", SEEDS, "c-seeds", ["1", "2"])
        with st.expander("Steps, guidance, sampler"):
            more = _more(base)
    texts = {"adapter": about, "weight": weights, "seed": seeds, **more}
    texts["prompt"] = list(
        dict.fromkeys(line.strip() for line in (prompts or "").splitlines() if line.strip())
    )
    with right:
        _summary(base, texts)


def _apply_address(bases: list[Base]) -> None:
    """`/compare?new=1&adapter=ID` begins with an adapter, `&run=ID` with the checkpoints of a run."""
    adapter = shell.sought(Adapter, st.query_params.pop("adapter", ""))
    if adapter is not None:
        st.session_state[ADAPTERS] = [adapter.id]
        fitting = [base.id for base in bases if base.id == adapter.base_id]
        fitting += [base.id for base in bases if base.family == adapter.family]
        st.session_state["c-base"] = next(iter(fitting), bases[0].id)
        if adapter.trigger_words:
            st.session_state.setdefault("c-prompts", ", ".join(adapter.trigger_words))
    run = shell.sought(Run, st.query_params.pop("run", ""))
    if run is not None:
        st.session_state["c-base"], st.session_state["c-run"] = run.base_id, run.id


def _chips(label: str, options: Sequence[str], key: str, default: list[str]) -> list[str]:
    """Values to choose, or to type."""
    st.session_state.setdefault(key, default)
    offered = list(dict.fromkeys([*options, *st.session_state[key]]))
    return list(
        st.multiselect(
            label, offered, key=key, accept_new_options=True, persist_state=KEPT, placeholder="Choose or type"
        )
    )


def _adapters(base: Base) -> list[str]:
    """Adapters and checkpoints to compare, with `none` in front unless one says otherwise."""
    chosen: list[str] = st.session_state.setdefault(ADAPTERS, [])
    turn = st.session_state.setdefault("c-turn", 0)
    if picked := pick_adapter("Add an adapter", base.family, without=chosen, key=f"c-pick-{turn}"):
        chosen.append(picked.id)
        st.session_state["c-turn"] = turn + 1  # a new list with nothing chosen
        st.rerun()
    known = {one.id: one for one in shell.workspace().catalog.list(Adapter, id=tuple(chosen))}
    if chosen:
        with st.container(horizontal=True, gap="small"):
            for id in list(chosen):
                name = md(known[id].name) if id in known else "gone"
                st.button(
                    name, key=f"c-drop-{id}", icon=":material/close:", on_click=chosen.remove, args=(id,)
                )
    checkpoints = _checkpoints(base)
    about = [*(id for id in chosen if id in known), *checkpoints]
    if about and st.toggle("Also without any adapter", value=True, key="c-none", persist_state=KEPT):
        return ["none", *about]
    return about


def _checkpoints(base: Base) -> list[str]:
    """Checkpoints of a run, as RUN@STEP."""
    from studio.sampling.chosen import steps_listed

    workspace = shell.workspace()
    runs = [
        run
        for run in workspace.catalog.list(Run, family=base.family, limit=RUNS)
        if steps_listed(workspace, run)
    ]
    if not runs:
        return []
    names = {run.id: run for run in runs}
    if st.session_state.get("c-run") not in names:
        st.session_state["c-run"] = None
    id = st.selectbox(
        "Checkpoints of a run",
        list(names),
        index=None,
        format_func=lambda id: names[id].name,
        key="c-run",
        placeholder="none",
    )
    if not id:
        return []
    steps = steps_listed(workspace, names[id])
    return [f"{id}@{step}" for step in st.multiselect("At step", steps, default=steps, key=f"c-steps-{id}")]


def _more(base: Base) -> dict[str, list[str]]:
    from studio.sampling.defaults import default_guidance

    st.text_input("What to avoid (negative prompt)", key="c-negative", persist_state=KEPT)
    own = f"{default_guidance(base):g}"
    return {
        "steps": _chips("How many steps", STEPS, "c-steps", ["25"]),
        "guidance": _chips("Guidance", GUIDANCES, f"c-guidance-{base.id}", [own]),
        "scheduler": list(
            st.multiselect(
                "Samplers", scheduler_names(base.family), default=[DEFAULT], key=f"c-samplers-{base.id}",
                format_func=lambda name: "the base's own" if name == DEFAULT else name,
            )
        ),
    }  # fmt: skip


def _summary(base: Base, texts: dict[str, list[str]]) -> None:
    """How many cells, how long, and the button."""
    from studio.compare.spec import MAX_CELLS

    counts = {name: len(values) for name, values in texts.items() if values}
    size = 1
    for count in counts.values():
        size *= count
    with st.container(key="panel-compare"):
        varied = [plural(count, name) for name, count in counts.items() if count > 1]
        st.markdown(f"**{plural(size, 'cell')}**" + (f"  \n{' × '.join(varied)}" if varied else ""))
        if size > MAX_CELLS:
            st.markdown(f":orange[At most {MAX_CELLS:,}: leave out values.]")
        elif texts["prompt"]:
            st.caption(_forecast(base, texts, size))
        name = st.text_input("Name", key="c-name", placeholder="made up from what is compared")
        ready = bool(texts["prompt"]) and 1 <= size <= MAX_CELLS
        hint = None if texts["prompt"] else "Say what to draw first"
        if st.button(
            "Draw the grid", type="primary", icon=":material/grid_view:", width="stretch", disabled=not ready,
            help=hint, shortcut="Ctrl+Enter",
        ):  # fmt: skip
            with shell.guarded():
                _start(base, texts, name or "")


def _forecast(base: Base, texts: dict[str, list[str]], size: int) -> str:
    from studio.compare.grids import seconds_each

    # Adapters cost next to no time, and to look a checkpoint up means to read it.
    lean = {name: values for name, values in texts.items() if name not in ("adapter", "weight")}
    try:
        each = seconds_each(shell.workspace(), _spec(base, lean))
    except StudioError:
        return "What is not drawn yet is drawn; equal cells once."
    if each is None:
        return "This base has drawn nothing here yet, so how long it takes is not known."
    return f"About {duration(max(1, each * size))}, less what is drawn already."


def _spec(base: Base, texts: dict[str, list[str]]) -> Any:
    from studio.compare.build import base_request, from_texts

    if not texts["prompt"]:
        raise BadInput("prompt", "is missing", "say what to draw")
    request = base_request(shell.workspace(), base.id, negative=st.session_state.get("c-negative") or "")
    named = dict(texts)
    if named.get("adapter") and all("@" in one or one == "none" for one in named["adapter"]):
        named["checkpoint"] = named.pop("adapter")
    return from_texts(shell.workspace(), request, named)


def _start(base: Base, texts: dict[str, list[str]], name: str) -> None:
    from studio.compare.grids import create

    with st.spinner("Putting the pictures in line"):  # 2,000 take a quarter of a minute
        made = create(shell.workspace(), _spec(base, texts), name)
    state.wake_worker()
    shell.stay(comparison=made.id)
