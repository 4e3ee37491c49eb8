"""The whole of an evidence sheet: verdict, ranks, strength, pictures, nearest training pictures."""

import streamlit as st

from registry.records import Adapter, Evaluation, Run
from studio.app import shell
from studio.app.components.checkpoints_table import stage_badge
from studio.app.components.compare_parts import GridCell, grid
from studio.app.components.evidence import verdict
from studio.app.components.evidence_chart import strength_chart
from studio.app.components.gallery import Card, gallery
from studio.app.routes import picture_url
from studio.app.words import md
from studio.evidence.evaluations import evidence_of, plan_of, predecessor
from studio.evidence.figures import Near
from studio.evidence.outputs import about_name, page_of, short
from studio.evidence.pictures import Pictures
from studio.evidence.plan import Plan
from studio.evidence.result import Evidence
from studio.evidence.rows import figures_at, rows_of
from studio.evidence.words import MEASURES

CELL = 130  # pixels


def sheet(evaluation: Evaluation) -> None:
    """The page."""
    evidence, plan = evidence_of(evaluation), plan_of(evaluation)
    name = about_name(shell.workspace(), evaluation)
    shell.heading(md(f"Evidence: {name}"))
    _actions(evaluation, name, measured=evidence is not None)
    if evidence is None:
        shell.empty(
            "evidence", "Not measured yet", "It appears here when its pictures are drawn and measured."
        )
        return
    with st.container(key="panel-verdict"):
        verdict(plan, evidence)
    _ranks(plan, evidence)
    pick = evidence.judgement.pick
    st.subheader(f"What strength does to {md(plan.named(pick))}", anchor=False)
    strength_chart(evidence.curve(pick), key="sheet-curve")
    pictures = Pictures(shell.workspace(), evaluation, plan)
    seed = st.selectbox("Seed", plan.seeds, key="sheet-seed", width=140)
    spots = [("", 0.0, "none"), *((pick, weight, f"{weight:g}") for weight in plan.weights)]
    _grid(plan, pictures, spots, seed, key="sheet-strengths")
    if len(plan.subjects) > 1:
        near = min(plan.weights, key=lambda weight: abs(weight - evidence.judgement.weight))
        st.subheader(f"All of them at strength {near:g}", anchor=False)
        spots = [("", 0.0, "none"), *((one.id, near, one.name) for one in plan.subjects)]
        _grid(plan, pictures, spots, seed, key="sheet-subjects")
    _nearest(plan, evidence, pictures)
    _before(evaluation, plan, evidence)


def _actions(evaluation: Evaluation, name: str, *, measured: bool) -> None:
    workspace = shell.workspace()
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        if workspace.catalog.find(Run, evaluation.run_id or "-") is not None:
            shell.link("runs", "The run", icon=":material/arrow_back:", run=evaluation.run_id)
        elif workspace.catalog.find(Adapter, evaluation.adapter_id or "-") is not None:
            shell.link("adapters", "The adapter", icon=":material/arrow_back:", adapter=evaluation.adapter_id)
        if st.button("All of its pictures", icon=":material/grid_view:", type="tertiary", key="sheet-all"):
            shell.stay(comparison=evaluation.comparison_id)
        if measured:
            st.download_button(
                "Save the report", lambda: page_of(workspace, evaluation), f"evidence-{evaluation.id}.html",
                "text/html", icon=":material/download:", on_click="ignore", key="sheet-save",
                help=f"The evidence of {name} as one file that can be sent to someone: it needs no network.",
            )  # fmt: skip


def _ranks(plan: Plan, evidence: Evidence) -> None:
    st.subheader("Best first", anchor=False)
    for place, row in enumerate(rows_of(evidence, plan)):
        with st.container(key=f"panel-rank-{place}", gap="xsmall"):
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                st.markdown(f"**{md(row['name'])}**", width="content")
                stage_badge(row["stage"], best=not place)
            st.markdown(md(row["reason"]))
            figures = [f"{measure.label.lower()} {row[measure.name]}" for measure in MEASURES]
            st.caption(" · ".join([*figures, f"score {row['score']}"]))


def _grid(
    plan: Plan, pictures: Pictures, spots: list[tuple[str, float, str]], seed: int, *, key: str
) -> None:
    """One row a prompt, one column a subject at a strength."""
    rows: list[tuple[str, list[GridCell]]] = []
    for number, prompt in enumerate(plan.prompts):
        cells: list[GridCell] = []
        for subject, weight, label in spots:
            sample = pictures.samples.get((subject, weight, number, seed), "")
            url = picture_url("sample", sample, 0) if sample else ""
            text = f"{label} · {prompt.text} · seed {seed}"
            cells.append(GridCell(id=f"{subject}/{weight}/{number}", text=text, url=url, note="gone"))
        rows.append((prompt.text, cells))
    grid([label for _, _, label in spots], rows, key=key, cell=CELL)


def _nearest(plan: Plan, evidence: Evidence, pictures: Pictures) -> None:
    judgement = evidence.judgement
    own = [p for p in evidence.points if p.subject == judgement.pick and p.nearest]
    if not own:
        return
    point = min(own, key=lambda one: abs(one.weight - judgement.weight))
    st.subheader("Nearest training pictures", anchor=False)
    st.caption("First what was drawn, then the training picture that it is most like.")
    cards = [_pair(plan, pictures, judgement.pick, point.weight, near) for near in point.nearest]
    gallery([card for pair in cards for card in pair], key="sheet-nearest", opens=False, least=120)


def _pair(plan: Plan, pictures: Pictures, subject: str, weight: float, near: Near) -> tuple[Card, Card]:
    sample = pictures.samples.get((subject, weight, near.prompt, near.seed), "")
    drawn = picture_url("sample", sample, 0) if sample else ""
    trained = picture_url("blob", plan.training[near.training])
    id = f"{near.prompt}-{near.seed}"
    text = plan.prompts[near.prompt].text
    return (
        Card(
            id=f"{id}-drawn", images=(drawn,) if drawn else (), lines=(text,), alt=text, zoom=drawn,
            zoom_text=text,
        ),
        Card(
            id=f"{id}-training", images=(trained,), lines=(f"training picture, {near.similarity:.0%} alike",),
            alt="training picture", zoom=trained, zoom_text="training picture",
        ),
    )  # fmt: skip


def _before(evaluation: Evaluation, plan: Plan, evidence: Evidence) -> None:
    """Against the run before."""
    before = predecessor(shell.workspace(), evaluation)
    if before is None:
        return
    then = short(shell.workspace(), before)
    now = figures_at(evidence, plan, evidence.judgement.pick)
    st.subheader("Against the run before", anchor=False)
    mine = plan.named(evidence.judgement.pick)
    rows = [{"": one.label, then["pick"]: then["figures"][one.name], mine: now[one.name]} for one in MEASURES]
    st.table(rows, border="horizontal", hide_index=True)
    shell.link("compare", f"Evidence of {md(then['about'])}", evidence=before.id)
