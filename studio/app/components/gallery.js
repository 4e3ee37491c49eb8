// Cards in a responsive grid. All text goes in as textContent: names and captions are foreign.
const FULL_HEART = "\u2665\uFE0E";  // U+FE0E: as text, not as a coloured emoji
const OPEN_HEART = "\u2661\uFE0E";

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
    if (card.sound) {
      const player = make("audio", "act");
      player.controls = true;
      player.preload = "none";
      player.src = card.sound;
      player.setAttribute("aria-label", card.title || "Sound");
      item.classList.add("acting");
      item.append(player);
    }
    if (card.file) {
      const link = make("a", "act", card.file_text);
      link.href = card.file;
      link.download = "";
      item.classList.add("acting");
      item.append(link);
    }
    if (data.picking) item.append(make("span", "check", card.selected ? "\u2713" : ""));
    if (data.hearts) {
      const heart = make("button", card.favourite ? "heart on" : "heart", card.favourite ? FULL_HEART : OPEN_HEART);
      heart.type = "button";
      heart.title = card.favourite ? "No favourite any more" : "Make it a favourite";
      heart.setAttribute("aria-label", `Favourite: ${card.title}`);
      heart.setAttribute("aria-pressed", String(card.favourite));
      heart.onclick = () => setTriggerValue("hearted", card.id);
      item.append(heart);
    } else if (card.favourite) {
      const heart = make("span", "heart on", FULL_HEART);
      heart.title = "Favourite";
      item.append(heart);
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
