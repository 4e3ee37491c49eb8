// Cards in a responsive grid. All text goes in as textContent: names and captions are foreign.
export default function (component) {
  const { data, parentElement, setTriggerValue, setStateValue } = component;
  const root = parentElement.querySelector("#grid");
  root.style.setProperty("--least", `${data.least}px`);
  root.classList.toggle("single", data.least === 0);
  root.classList.toggle("plain", !data.framed);
  const zoomed = data.cards.filter((card) => card.zoom).map((card) => ({ url: card.zoom, text: card.zoom_text }));

  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const frame = (card) => {
    const box = make("div", card.images.length > 1 ? "picture mosaic" : "picture");
    box.style.aspectRatio = data.ratio;
    if (!card.images.length) box.append(make("span", "none", card.placeholder || "no picture yet"));
    for (const url of card.images) {
      const image = make("img", data.fit === "contain" ? "whole" : "");
      image.loading = "lazy";
      image.decoding = "async";
      image.alt = card.alt || card.title || "";
      image.onload = () => { if (image.naturalWidth <= 160) image.classList.add("sharp"); };
      image.onerror = () => image.replaceWith(make("span", "none", "picture missing"));
      image.src = url;
      box.append(image);
    }
    return box;
  };
  const body = (card) => {
    const box = make("div", "text");
    if (card.title) box.append(make("div", "title", card.title));
    for (const line of card.lines) box.append(make("div", "line", line));
    if (card.badges.length) {
      const row = make("div", "badges");
      for (const [text, tone] of card.badges) row.append(make("span", `badge ${tone}`, text));
      box.append(row);
    }
    return box;
  };
  root.replaceChildren(...data.cards.map((card, index) => {
    const item = make("div", card.selected ? "card selected" : "card");
    const face = make("button", "face");
    face.type = "button";
    face.setAttribute("aria-label", card.label || card.title || card.alt || "picture");
    if (data.picking || card.selected) face.setAttribute("aria-pressed", String(card.selected));
    face.append(frame(card));
    const text = body(card);
    if (text.childElementCount) face.append(text);
    const zoom = () => openLightbox(zoomed, zoomed.findIndex((picture) => picture.url === card.zoom));
    face.onclick = () => (data.opens ? setTriggerValue("opened", card.id) : card.zoom && zoom());
    item.append(face);
    if (card.action) {
      const act = make("button", "act", card.action);
      act.type = "button";
      act.setAttribute("aria-label", `${card.action}: ${card.title || card.alt}`);
      // A state, not a trigger: the page can look at it until it has done what it is for.
      act.onclick = () => setStateValue("acted", { card: card.id, at: Date.now() });
      item.classList.add("acting");
      item.append(act);
    }
    if (data.picking) item.append(make("span", "check", card.selected ? "\u2713" : ""));
    if (data.stars) {
      const star = make("button", card.favourite ? "star on" : "star", card.favourite ? "\u2605" : "\u2606");
      star.type = "button";
      star.title = card.favourite ? "No favourite any more" : "Make it a favourite";
      star.setAttribute("aria-label", `Favourite: ${card.title}`);
      star.setAttribute("aria-pressed", String(card.favourite));
      star.onclick = () => setTriggerValue("starred", card.id);
      item.append(star);
    } else if (card.favourite) {
      const star = make("span", "star on", "\u2605");
      star.title = "Favourite";
      item.append(star);
    }
    if (data.opens && card.zoom) {
      const eye = make("button", "zoom", "\u2922");
      eye.type = "button";
      eye.title = "View large";
      eye.setAttribute("aria-label", "View large");
      eye.onclick = zoom;
      item.append(eye);
    }
    face.onkeydown = (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) root.children[index + step]?.querySelector(".face")?.focus();
    };
    return item;
  }));
}
