"""Train: what to learn, on what, from which pictures, how thoroughly; what it costs; go."""

from dataclasses import dataclass
from typing import Any

import streamlit as st

from registry.records import Base, Dataset, Image
from studio.app import shell, state
from studio.app.choices import EFFORT_REASONS, EFFORT_WORDS, GOALS, departures, effort_sets, read_upload
from studio.app.components.cluster import choose_place
from studio.app.components.forecast import forecast_card
from studio.app.components.gallery import Card, gallery
from studio.app.forms import change_line, recipe_form, sets, wrong_values
from studio.app.routes import picture_url
from studio.app.words import md, plural, spoken
from studio.runs.checks import check_fit, traits_of, with_trigger
from trainers.recipe import Recipe, apply_sets, differences, preset_by_name, preset_name, reasons, to_toml

SHOWN = 10  # pictures of the data set


@dataclass(frozen=True)
class Choice:
    """The four choices, and the preset they lead to."""

    goal: str
    base: Base
    dataset: Dataset
    effort: str

    @property
    def preset(self) -> str:
        """Name of the shipped recipe."""
        return preset_name(self.base.family, self.goal, self.base.name)

    @property
    def start(self) -> Recipe:
        """The preset, stretched to the effort."""
        preset = preset_by_name(self.preset)
        return apply_sets(preset, effort_sets(preset, self.effort))

    @property
    def changed(self) -> dict[str, Any]:
        """What the person changed from `start`; kept per preset."""
        return st.session_state.setdefault(f"changed-{self.preset}", {})


def page() -> None:
    """Choices left, cost and the button right, everything else below."""
    from studio.bases import list_bases

    apply_address()
    shell.heading("Train", "Four choices. Everything else has a good value already, and says why.")
    bases = list_bases(shell.workspace())
    datasets = shell.workspace().catalog.list(Dataset)
    if not datasets:
        shell.empty(
            "train",
            "First, some pictures",
            "Training learns from a data set: pictures with a few words each.",
            [("Add pictures", lambda: shell.go("datasets", new="1"))],
        )
        return
    left, right = st.columns([3, 2], gap="large")
    with left:
        choice = choose(bases, datasets)
    changes = st.container()
    opened, wrong = everything(choice)  # before the recipe is made, because it changes it
    if wrong:
        with right:
            not_yet(wrong, marked=opened)
        return
    recipe = apply_sets(choice.start, sets(choice.changed))
    with right:
        launch_panel(choice, recipe)
    with changes:
        departures_list(choice, recipe)


def apply_address() -> None:
    """`?goal=&base=&dataset=` choose; then the address is plain again."""
    asked = st.query_params.to_dict()
    if not asked:
        return
    st.query_params.clear()
    if asked.get("goal") in GOALS:
        st.session_state["train-goal"] = asked["goal"]
    if base := shell.sought(Base, asked.get("base", "")):
        st.session_state["train-base"] = base.id
    if dataset := shell.sought(Dataset, asked.get("dataset", "")):
        st.session_state["train-dataset"] = dataset.id


def choose(bases: list[Base], datasets: list[Dataset]) -> Choice:
    """Four widgets."""
    goal = st.radio(
        "1. What should it learn?",
        list(GOALS),
        key="train-goal",
        format_func=lambda key: GOALS[key][0],
        captions=[words for _, words in GOALS.values()],
        persist_state="session",
    )
    base = _pick("2. On which base model?", "train-base", {b.id: b for b in bases})
    dataset = _pick("3. From which pictures?", "train-dataset", {d.id: d for d in datasets})
    images = shell.workspace().catalog.list(Image, dataset_id=dataset.id, order="position", limit=SHOWN)
    cards = [
        Card(
            id=i.id,
            images=(picture_url("thumb", i.blob),),
            alt=i.name,
            zoom=picture_url("blob", i.blob),
            zoom_text=i.caption,
        )
        for i in images
    ]
    gallery(cards, key="train-pictures", opens=False, least=64, framed=False)
    trigger = f" · trigger word {dataset.trigger}" if dataset.trigger else ""
    st.caption(md(f"{plural(dataset.image_count, 'picture')}{trigger}"))
    effort = st.segmented_control(
        "4. How thorough?",
        list(EFFORT_WORDS),
        default="normal",
        format_func=EFFORT_WORDS.__getitem__,
        key="train-effort",
        required=True,
        persist_state="session",
    )
    return Choice(goal or "style", base, dataset, effort or "normal")


def _pick(label: str, key: str, records: dict[str, Any]) -> Any:
    if st.session_state.get(key) not in records:
        st.session_state[key] = next(iter(records))
    return records[
        st.selectbox(
            label, list(records), format_func=lambda id: records[id].name, key=key, persist_state="session"
        )
    ]


def launch_panel(choice: Choice, recipe: Recipe) -> None:
    """What it costs, what it is called, the button."""
    from studio.runs.launch import launch

    with st.container(key="panel-forecast"):
        cost = st.container()
        name = st.text_input(
            "Name of the adapter",
            max_chars=100,
            placeholder=f"{choice.dataset.name}-{choice.goal}",
            key="train-name",
        )
        kept = regularisation_choice(choice)
        place = choose_place()
        with cost:
            forecast_card(recipe, choice.base, choice.dataset, kept)
        if st.button("Start training", type="primary", width="stretch", icon=":material/play_arrow:"):
            with shell.guarded():
                run = launch(
                    shell.workspace(),
                    recipe,
                    choice.base,
                    choice.dataset,
                    (name or "").strip(),
                    regularisation=kept,
                    place=place,
                )
                state.wake_worker()
                shell.note(f"{run.name} is in line")
                shell.go("runs", run=run.id)


def regularisation_choice(choice: Choice) -> Dataset | None:
    """Another data set whose pictures the base should keep drawing as it does; none is the rule."""
    others = {d.id: d for d in shell.workspace().catalog.list(Dataset) if d.id != choice.dataset.id}
    if not others:
        return None
    chosen = st.selectbox(
        "Regularisation pictures",
        ["", *others],
        format_func=lambda id: others[id].name if id else "none",
        key=f"train-regularisation-{choice.dataset.id}",
        help="Other members of the class, with captions: what the base should keep drawing as it does.",
    )
    return others.get(chosen or "")


def departures_list(choice: Choice, recipe: Recipe) -> None:
    """Every setting that is not the preset's, with why the preset has its own."""
    found = differences(recipe, choice.preset)
    if not found:
        return
    with st.container(key="panel-changes"):
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            st.markdown(f"**Different from the preset** :gray[{md(choice.preset)}]", width="content")
            if choice.changed:
                st.button(
                    "Back to the preset",
                    key="reset-recipe",
                    icon=":material/undo:",
                    type="tertiary",
                    on_click=reset,
                    args=(choice.preset,),
                )
        if EFFORT_REASONS[choice.effort]:
            before, after = preset_by_name(choice.preset).train.max_steps, choice.start.train.max_steps
            st.markdown(
                f"**{EFFORT_WORDS[choice.effort]}**: {after:,} steps instead of {before:,}, and previews and "
                f"checkpoints in step with them  \n:gray[:small[{EFFORT_REASONS[choice.effort]}]]"
            )
        for change in found:
            if change.key in choice.changed:
                why = f"  \n:gray[:small[the preset says: {md(change.reason)}]]" if change.reason else ""
                st.markdown(change_line(change.key, change.preset, change.value) + why)


def reset(preset: str) -> None:
    """Forget the changes; other widget keys make the form begin anew."""
    st.session_state[f"changed-{preset}"] = {}
    st.session_state["form-serial"] = st.session_state.get("form-serial", 0) + 1


def not_yet(wrong: dict[str, str], *, marked: bool) -> None:
    """Instead of the cost and the button: what is in the way, unless it is already said at its field."""
    lines = [f"**{md(spoken(key))}**: {md(text)}" if key else md(text) for key, text in wrong.items()]
    if marked and all(wrong):
        lines = ["Training can start when the values marked below are right."]
    st.warning("  \n".join(lines), icon=":material/error:")


def everything(choice: Choice) -> tuple[bool, dict[str, str]]:
    """All fields, and the recipe as TOML in and out; returns whether they are in sight and what is wrong."""
    ws = shell.workspace()

    def check(recipe: Recipe) -> None:
        check_fit(ws, with_trigger(recipe, choice.dataset), choice.base)

    with st.expander("Everything", icon=":material/tune:", key="everything", on_change="rerun") as box:
        if not box.open:  # 70 widgets that nobody looks at would cost every rerun
            return False, wrong_values(choice.start, choice.changed, check)
        serial = st.session_state.get("form-serial", 0)
        wrong = recipe_form(
            choice.start,
            choice.changed,
            reasons(choice.preset),
            key=f"r{serial}-{choice.preset}-{choice.effort}-",
            traits=traits_of(ws, choice.base),
            check=check,
        )
    with st.expander("As a file (TOML)", icon=":material/description:"):
        if not wrong:
            text = to_toml(apply_sets(choice.start, sets(choice.changed)))
            st.code(text, language="toml", height=400, wrap_lines=True)
            st.download_button(
                "Save", text, f"{choice.preset}.toml", "application/toml", icon=":material/download:"
            )
        upload(choice)
    return True, wrong


def upload(choice: Choice) -> None:
    """A recipe from a file becomes the changes to the preset."""
    given = st.file_uploader(
        "Use a recipe from a file", "toml", key=f"toml-{st.session_state.get('form-serial', 0)}"
    )
    if given is None:
        return
    with shell.guarded():
        recipe = read_upload(given.name, given.getvalue())
        name = preset_name(choice.base.family, recipe.goal, choice.base.name)
        preset = preset_by_name(name)
        reset(name)
        start = apply_sets(preset, effort_sets(preset, choice.effort))
        kept = {
            key: value for key, value in departures(recipe, start).items() if key not in ("family", "goal")
        }
        st.session_state[f"changed-{name}"] = kept
        shell.note(f"{given.name} is in the form")
        st.query_params["goal"] = recipe.goal
        st.rerun()


if __name__ == "__main__":
    page()
