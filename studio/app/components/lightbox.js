// A picture at full size over the page. Arrows step, Escape or a click beside it closes.
// more.across: pictures in a row, for the arrows up and down; more.actions: buttons, {label, run(index)} each.
function openLightbox(pictures, start, more = {}) {
  const dialog = document.createElement("dialog");
  Object.assign(dialog.style, {
    border: "0", padding: "0", background: "transparent", maxWidth: "100vw", maxHeight: "100vh", outline: "none",
    width: "100vw", height: "100vh", overflow: "hidden",
  });
  const sheet = document.createElement("style");
  sheet.textContent = "dialog.ls-light::backdrop{background:rgba(15,15,14,.9)}";
  dialog.className = "ls-light";
  dialog.setAttribute("aria-label", "Picture");
  const image = document.createElement("img");
  Object.assign(image.style, {
    position: "absolute", inset: "3vh 5vw 11vh", width: "90vw", height: "86vh", objectFit: "contain",
  });
  image.addEventListener("load", () => {
    image.style.imageRendering = image.naturalWidth <= 160 ? "pixelated" : "auto";
  });
  const text = document.createElement("div");
  Object.assign(text.style, {
    position: "absolute", left: "8vw", right: "8vw", bottom: "2.5vh", textAlign: "center", color: "#ececE8",
    font: "15px/1.4 system-ui, sans-serif", maxHeight: "6.5vh", overflow: "auto",
  });
  let place = start;
  const button = (label, side, step) => {
    const arrow = document.createElement("button");
    arrow.textContent = step < 0 ? "\u2039" : "\u203a";
    arrow.setAttribute("aria-label", label);
    Object.assign(arrow.style, {
      position: "absolute", top: "42vh", [side]: "1vw", width: "3rem", height: "5rem", border: "0",
      background: "transparent", color: "#ececE8", font: "300 2.6rem/1 system-ui", cursor: "pointer",
    });
    arrow.onclick = (event) => { event.stopPropagation(); show(place + step); };
    return arrow;
  };
  function show(index) {
    place = (index + pictures.length) % pictures.length;
    image.src = pictures[place].url;
    image.alt = pictures[place].text || "";
    text.textContent = pictures[place].text || "";
  }
  dialog.append(sheet, image, text);
  if (more.actions?.length) {
    const bar = document.createElement("div");
    Object.assign(bar.style, {
      position: "absolute", left: "0", right: "0", top: "1vh", display: "flex", flexWrap: "wrap", gap: ".5rem",
      justifyContent: "center", zIndex: "1",
    });
    for (const action of more.actions) {
      const act = document.createElement("button");
      act.textContent = action.label;
      Object.assign(act.style, {
        border: "1px solid rgba(255,255,255,.35)", borderRadius: ".45rem", background: "rgba(30,30,29,.85)",
        color: "#ececE8", font: "14px/1.2 system-ui, sans-serif", padding: ".5rem .8rem", cursor: "pointer",
      });
      act.onclick = (event) => { event.stopPropagation(); dialog.close(); action.run(place); };
      bar.append(act);
    }
    dialog.append(bar);
    image.style.inset = "9vh 5vw 11vh";
    image.style.height = "80vh";
  }
  if (pictures.length > 1) dialog.append(button("Previous picture", "left", -1), button("Next picture", "right", 1));
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") show(place - 1);
    if (event.key === "ArrowRight") show(place + 1);
    const down = { ArrowUp: -1, ArrowDown: 1 }[event.key] * (more.across || 0);
    if (down) {
      event.preventDefault();
      if (pictures[place + down]) show(place + down);
    }
  });
  dialog.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  show(start);
  dialog.showModal();
}
