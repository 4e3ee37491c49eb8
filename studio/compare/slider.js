// Two pictures over each other, and a line between them that is dragged, or moved with the arrow keys.
// `root` holds: .under and .over (img), .line (the handle, focusable), .left and .right (names).
function makeSlider(root) {
  const find = (query) => root.querySelector(query);
  const over = find(".over"), line = find(".line"), stage = find(".stage");
  let share = 50, pointer = null;
  const show = (value) => {
    share = Math.min(100, Math.max(0, value));
    over.style.clipPath = `inset(0 ${100 - share}% 0 0)`; // what is left of the line
    line.style.left = `${share}%`;
    line.setAttribute("aria-valuenow", String(Math.round(share)));
  };
  const at = (event) => {
    const box = stage.getBoundingClientRect();
    return (event.clientX - box.left) / box.width * 100;
  };
  stage.onpointerdown = (event) => {
    if (event.button) return;
    event.preventDefault();
    pointer = event.pointerId;
    stage.setPointerCapture(pointer);
    line.focus({ preventScroll: true });
    show(at(event));
  };
  stage.onpointermove = (event) => { if (event.pointerId === pointer) show(at(event)); };
  stage.onpointerup = stage.onpointercancel = (event) => { if (event.pointerId === pointer) pointer = null; };
  line.onkeydown = (event) => {
    const step = { ArrowLeft: -2, ArrowDown: -2, ArrowRight: 2, ArrowUp: 2, PageDown: -20, PageUp: 20 }[event.key];
    if (step) show(share + step);
    else if (event.key === "Home") show(0);
    else if (event.key === "End") show(100);
    else return;
    event.preventDefault();
  };
  const sharpen = (image) => image.classList.toggle("sharp", image.naturalWidth <= 160);
  return {
    set(left, right) { // {url, name} each
      for (const [image, name, one] of [[over, find(".left"), left], [find(".under"), find(".right"), right]]) {
        image.onload = () => {
          sharpen(image);
          if (image !== over) return;
          stage.style.aspectRatio = `${image.naturalWidth} / ${image.naturalHeight}`;
          stage.style.width = `min(100%, ${(70 * image.naturalWidth / image.naturalHeight).toFixed(2)}vh)`;
        };
        if (image.src !== one.url) image.src = one.url;
        image.alt = one.name;
        name.textContent = one.name;
      }
      show(share);
    },
  };
}
