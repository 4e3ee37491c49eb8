// The page's own part: pictures at full size, arrows between them, and which two the slider shows.
const cells = [...document.querySelectorAll(".cell")];
const dialog = document.querySelector("dialog"), large = dialog.querySelector("img"), text = dialog.querySelector("p");
const root = document.querySelector(".slider");
const slider = root && makeSlider(root);
const chosen = { left: cells[0], right: cells[1] || cells[0] };
let place = 0;
const picture = (cell) => ({ url: cell.querySelector("img").src, name: cell.dataset.name });
const compare = () => slider && slider.set(picture(chosen.left), picture(chosen.right));
const show = (index) => {
  place = Math.min(cells.length - 1, Math.max(0, index));
  const one = picture(cells[place]);
  large.onload = () => large.classList.toggle("sharp", large.naturalWidth <= 160);
  large.src = one.url;
  large.alt = text.textContent = one.name;
};
for (const image of document.querySelectorAll(".cell img")) {
  const sharpen = () => image.classList.toggle("sharp", image.naturalWidth <= 160);
  if (image.complete) sharpen(); else image.onload = sharpen;
}
cells.forEach((cell, index) => { cell.onclick = () => { show(index); dialog.showModal(); }; });
dialog.onkeydown = (event) => {
  const wide = Number(cells[place].dataset.columns);
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -wide, ArrowDown: wide }[event.key];
  if (!step) return;
  event.preventDefault();
  show(place + step);
};
dialog.onclick = (event) => { if (event.target === dialog) dialog.close(); };
for (const button of dialog.querySelectorAll("button")) {
  button.onclick = () => {
    const side = button.dataset.side;
    dialog.close();
    if (!side) return;
    chosen[side] = cells[place];
    compare();
    root.scrollIntoView({ block: "nearest" });
  };
}
if (cells.length) compare();
