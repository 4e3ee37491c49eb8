// Cells of a comparison: a table whose labels stay in sight. All text goes in as textContent: names are foreign.
export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  const root = parentElement.querySelector("#cells");
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const seen = new Map([...root.querySelectorAll("img")].map((image) => [image.dataset.url, image]));
  const kept = { left: root.scrollLeft, top: root.scrollTop };
  const shown = data.rows.flatMap((row) => row.cells).filter((cell) => cell.url);
  const pictures = shown.map((cell) => ({ url: `${cell.url}?full`, text: cell.text }));
  const actions = data.actions.map(([name, label]) => ({
    label, run: (index) => setTriggerValue("acted", { action: name, cell: shown[index].id }),
  }));
  const picture = (cell) => {
    const image = seen.get(cell.url) || make("img", "");  // the same element again: no flicker while it is drawn
    seen.delete(cell.url);
    if (!image.src) {
      image.dataset.url = cell.url;
      image.loading = "lazy";
      image.decoding = "async";
      image.onload = () => { if (image.naturalWidth <= 160) image.classList.add("sharp"); };
      image.onerror = () => image.replaceWith(make("span", "none", "picture missing"));
      image.src = cell.url;
    }
    image.alt = cell.text;
    return image;
  };
  const box = (cell) => {
    const item = make("td", "");
    if (!cell.url) {
      const note = make("div", `empty ${cell.state}`, cell.note);
      note.title = cell.error || cell.text;
      item.append(note);
      return item;
    }
    const face = make("button", cell.side ? `face ${cell.side}` : "face");
    face.type = "button";
    face.setAttribute("aria-label", cell.text);
    face.append(picture(cell));
    if (cell.side) face.append(make("span", "side", cell.side === "left" ? "A" : "B"));
    face.onclick = () => openLightbox(pictures, shown.indexOf(cell), { actions, across: data.columns.length });
    face.onkeydown = (event) => {
      const [down, right] = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key] || [];
      if (down === undefined) return;
      const row = item.parentElement, at = [...row.children].indexOf(item) + right;
      const next = down ? (down > 0 ? row.nextElementSibling : row.previousElementSibling) : row;
      const target = next?.children[at]?.querySelector(".face");
      if (target) { event.preventDefault(); target.focus(); }
    };
    item.append(face);
    return item;
  };
  const table = make("table", "");
  table.style.setProperty("--wide", `${data.cell}px`);
  if (data.columns.some((label) => label)) {
    const head = make("tr", "");
    head.append(make("th", "corner"), ...data.columns.map((label) => make("th", "column", label)));
    const group = make("thead", "");
    group.append(head);
    table.append(group);
  }
  const body = make("tbody", "");
  for (const row of data.rows) {
    const line = make("tr", "");
    line.append(make("th", "row", row.label), ...row.cells.map(box));
    body.append(line);
  }
  table.append(body);
  root.replaceChildren(table);
  root.scrollLeft = kept.left;
  root.scrollTop = kept.top;
}
