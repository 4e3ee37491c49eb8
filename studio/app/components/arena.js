// Two pictures without names. A click, a button or a key chooses: left, right, down = tie.
export default function (component) {
  const { data, parentElement, setStateValue } = component;
  const root = parentElement.querySelector("#arena");
  const sides = [...root.querySelectorAll(".pick")];
  const buttons = [...root.querySelectorAll("button")];
  const vote = (outcome) => {
    if (root.voted === data.token) return; // a second press while the next pair is on its way
    root.voted = data.token;
    for (const button of buttons) button.disabled = true;
    setStateValue("voted", { token: data.token, outcome });
  };
  sides.forEach((side, index) => {
    const image = side.querySelector("img");
    image.onload = () => image.classList.toggle("sharp", image.naturalWidth <= 160);
    if (image.src !== data.pictures[index]) image.src = data.pictures[index];
  });
  for (const button of buttons) {
    button.disabled = root.voted === data.token;
    button.onclick = () => vote(button.dataset.outcome);
  }
  // What was clicked to come here would take the arrow keys for itself.
  if (root.shown !== data.token && !document.activeElement?.matches("input, textarea")) root.focus({ preventScroll: true });
  root.shown = data.token;
  const press = (event) => {
    const outcome = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie" }[event.key];
    const typing = event.composedPath()[0]?.matches?.("input, textarea, select, [role=slider], [role=combobox], [role=tab], [role=radio]");
    if (!outcome || typing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    vote(outcome);
  };
  document.addEventListener("keydown", press);
  return () => document.removeEventListener("keydown", press);
}
