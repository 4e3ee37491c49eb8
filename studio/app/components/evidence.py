"""The evidence of a run or an adapter in short: what to use and why; the whole sheet is one click away."""

import streamlit as st

from registry.records import Adapter, Evaluation, Run
from studio.app import shell, state
from studio.app.components.evidence_chart import strength_chart
from studio.app.components.evidence_dialog import evidence_dialog
from studio.app.words import duration, md, plural
from studio.evidence.evaluations import evidence_of, go_on, judged, newest, plan_of, stage_of, stop
from studio.evidence.plan import Plan
from studio.evidence.result import Evidence
from studio.evidence.words import strength_line

AGAIN = "e-asks-again"  # in the state of a session: the fragment asks the page for the dialog


def evidence_of_run(run: Run) -> None:
    """On the page of a run that has something to judge."""
    found = newest(shell.workspace(), run)
    st.subheader("Which one to use", anchor=False)
    if found is None:
        _offer(run, "Nothing was measured yet. The checkpoints can be drawn side by side and judged for you.")
        return
    _panel(run, found)


def evidence_of_adapter(adapter: Adapter) -> None:
    """On the page of an adapter: its own sheet, or that of its run."""
    workspace = shell.workspace()
    found, own = judged(workspace, adapter), newest(workspace, adapter)
    st.subheader("At which strength", anchor=False)
    if own is not None and not own.result:
        _panel(adapter, own)
        return
    evidence = evidence_of(found[0]) if found else None
    if found is None or evidence is None:
        _offer(adapter, "Nothing was measured yet. It can be drawn at several strengths and judged for you.")
        return
    evaluation, subject = found
    plan = plan_of(evaluation)
    with st.container(key="panel-evidence"):
        if evidence.judgement.pick == subject:
            verdict(plan, evidence)
        else:
            better, why = plan.named(evidence.judgement.pick), evidence.judgement.reason
            st.markdown(
                f":orange[:material/info:] Of its run, **{md(better)}** was found to be better. {md(why)}"
            )
        strength_chart(evidence.curve(subject), key="evidence-curve")
        _links(adapter, evaluation)


def verdict(plan: Plan, evidence: Evidence) -> None:
    """What to use, why, how sure, and a warning."""
    judgement = evidence.judgement
    strength = strength_line(judgement.weight, judgement.low, judgement.high)
    st.markdown(f"### Use {md(plan.named(judgement.pick))}, strength {md(strength)}")
    st.markdown(md(f"{judgement.reason} {judgement.weight_reason}"))
    st.caption(md(judgement.sure))
    if judgement.memorised:
        st.error(md(judgement.memorised_reason), icon=":material/content_copy:")


def _panel(about: Run | Adapter, evaluation: Evaluation) -> None:
    evidence = evidence_of(evaluation)
    with st.container(key="panel-evidence"):
        if evidence is None:
            _live(evaluation.id)
            if st.session_state.pop(AGAIN, False):
                evidence_dialog(about)
            return
        verdict(plan_of(evaluation), evidence)
        _links(about, evaluation)


def _offer(about: Run | Adapter, text: str) -> None:
    with st.container(key="panel-evidence", horizontal=True, vertical_alignment="center"):
        st.markdown(text, width="stretch")
        if st.button("Gather evidence", icon=":material/balance:", key="e-open"):
            evidence_dialog(about)


def _links(about: Run | Adapter, evaluation: Evaluation) -> None:
    with st.container(horizontal=True):
        if st.button("See the evidence", icon=":material/fact_check:", key="e-see"):
            shell.go("compare", evidence=evaluation.id)
        if st.button("Gather again", icon=":material/refresh:", type="tertiary", key="e-again"):
            evidence_dialog(about)


@st.fragment(run_every=2)
def _live(evaluation_id: str) -> None:
    """How far a sheet is; the page is shown anew when it is measured."""
    workspace = shell.workspace()
    evaluation = workspace.catalog.find(Evaluation, evaluation_id)
    if evaluation is None or evaluation.result:
        st.rerun()
    stage = stage_of(workspace, evaluation)
    if stage.name == "drawing":
        left = f", about {duration(stage.seconds_left)} left" if stage.seconds_left else ""
        st.progress(stage.drawn / max(1, stage.total), f"{stage.drawn:,} of {stage.total:,} drawn{left}")
    elif stage.name == "measuring":
        st.progress(1.0, "All pictures are drawn; they are being measured")
    else:
        missing = stage.total - stage.drawn
        wrong = stage.error or f"{plural(missing, 'picture')} not drawn"
        st.markdown(f":orange[The evidence is not complete.] {md(wrong)}")
    with st.container(horizontal=True):
        if not stage.live and st.button("Go on", icon=":material/play_arrow:", key="e-go-on"):
            with shell.guarded():
                go_on(workspace, evaluation)
                state.wake_worker()
                st.rerun()
        # What was asked for may be impossible by now, for example when a checkpoint was pruned.
        if not stage.live and st.button("Gather again", icon=":material/refresh:", key="e-other"):
            st.session_state[AGAIN] = True
            st.rerun()
        if stage.live and st.button("Stop", icon=":material/stop:", key="e-stop"):
            stop(workspace, evaluation)
            st.rerun()
    if stage.live and workspace.holder() is None:
        st.caption("No worker runs: nothing is drawn until one is started.")
        if st.button("Start the worker", icon=":material/play_arrow:", key="e-wake"):
            with shell.guarded():
                state.wake_worker()
