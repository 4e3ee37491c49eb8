// Pictures over time: one row per prompt, the base without adapter first and in sight while the rest scrolls.
export default function (component) {
  const { data, parentElement } = component;
  const root = parentElement.querySelector("#film");
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const atEnd = root.scrollLeft + root.clientWidth >= root.scrollWidth - 40;
  const first = !root.childElementCount;
  const seen = new Map([...root.querySelectorAll("img")].map((image) => [image.dataset.url, image]));
  const rows = data.rows.map((row) => {
    const strip = make("div", "row");
    strip.append(make("div", "prompt", row.prompt));
    const cells = make("div", "cells");
    const shown = row.cells.filter((cell) => cell.zoom).map((cell) => ({ url: cell.zoom, text: cell.text }));
    row.cells.forEach((cell) => {
      const box = make("button", cell.base ? "cell base" : "cell");
      box.type = "button";
      box.setAttribute("aria-label", cell.text);
      // Keeping the element keeps the decoded picture: no flicker at each tick.
      const image = seen.get(cell.url) || make("img", "");
      if (!image.src) {
        image.dataset.url = cell.url;
        image.loading = "lazy";
        image.alt = cell.text;
        image.onload = () => { if (image.naturalWidth <= 160) image.classList.add("sharp"); };
        image.src = cell.url;
      }
      box.append(image, make("span", "label", cell.label));
      box.onclick = () => openLightbox(shown, shown.findIndex((picture) => picture.url === cell.zoom));
      cells.append(box);
    });
    strip.append(cells);
    return strip;
  });
  root.replaceChildren(...rows);
  if (first || atEnd) root.scrollLeft = root.scrollWidth;
}
