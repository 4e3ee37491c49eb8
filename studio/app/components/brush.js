// A mask painted over a picture. What is done is kept as a list, so undo draws it again without its last entry.
const COLOUR = "#f0386b"; // the same in both themes: it has to stand out from pictures, not from the page
const WAIT = 350; // milliseconds after a stroke before the mask is handed over
const MOST = 400; // entries of the list; older ones become part of what it starts from

export default function (component) {
  const { data, parentElement, setStateValue } = component;
  const root = parentElement.querySelector("#brush");
  const report = (mask) => setStateValue("painted", { id: data.id, mask });
  if (root.tool && root.tool.id === data.id) {
    root.tool.report = report; // the page was drawn anew: go on with what is painted
    return root.tool.listen();
  }
  root.tool?.stop();
  root.tool = makeTool(root, data, report);
  return root.tool.listen();
}

function layer(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

function makeTool(root, data, report) {
  const find = (query) => root.querySelector(query);
  const { width, height } = data;
  const stage = find(".stage"), image = find("img"), ring = find(".ring"), note = find(".note"), size = find("input");
  const canvas = find("canvas");
  const buttons = Object.fromEntries([...root.querySelectorAll("button")].map((one) => [one.dataset.do, one]));
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const start = layer(width, height); // what the list begins with
  const list = [];
  const tool = { id: data.id, report };
  let erasing = false, stroke = null, timer = 0, place = { x: width / 2, y: height / 2 };

  canvas.width = width;
  canvas.height = height;
  stage.style.aspectRatio = `${width} / ${height}`;
  stage.style.width = `min(100%, ${(70 * width / height).toFixed(2)}vh)`;
  image.src = data.picture;
  image.alt = data.name;
  for (const one of [image, canvas]) one.classList.toggle("sharp", Math.max(width, height) <= 160);
  canvas.setAttribute("aria-label", "Picture to paint on. Arrow keys move the brush, the space bar paints.");

  const diameter = () => Math.max(1, Number(size.value) / 100 * Math.max(width, height));
  const line = (entry, from) => {
    pen.globalCompositeOperation = entry.erase ? "destination-out" : "source-over";
    pen.strokeStyle = pen.fillStyle = COLOUR;
    pen.lineWidth = entry.size;
    pen.lineCap = pen.lineJoin = "round";
    pen.beginPath();
    if (entry.points.length === 1) {
      pen.arc(entry.points[0].x, entry.points[0].y, entry.size / 2, 0, Math.PI * 2);
      pen.fill();
    } else {
      pen.moveTo(entry.points[from].x, entry.points[from].y);
      for (const point of entry.points.slice(from + 1)) pen.lineTo(point.x, point.y);
      pen.stroke();
    }
    pen.globalCompositeOperation = "source-over";
  };
  const fill = (under, colour) => {
    under.fillStyle = colour;
    under.fillRect(0, 0, width, height);
  };
  const invert = () => {
    const other = layer(width, height), context = other.getContext("2d");
    fill(context, COLOUR);
    context.globalCompositeOperation = "destination-out";
    context.drawImage(canvas, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.drawImage(other, 0, 0);
  };
  const act = (entry) => {
    if (entry.kind === "clear") pen.clearRect(0, 0, width, height);
    else if (entry.kind === "invert") invert();
    else line(entry, 0);
  };
  const redraw = () => {
    pen.clearRect(0, 0, width, height);
    pen.drawImage(start, 0, 0);
    list.forEach(act);
  };
  const share = () => {
    const pixels = pen.getImageData(0, 0, width, height).data;
    let painted = 0;
    for (let at = 3; at < pixels.length; at += 4) painted += pixels[at] > 127;
    return painted / (width * height);
  };
  const tell = (part) => {
    const percent = part > 0 && part < 0.01 ? "less than 1" : Math.round(part * 100);
    note.textContent = part ? `${percent} % of the picture is drawn anew` : "Paint over what is to change";
    buttons.undo.disabled = !list.length;
    buttons.clear.disabled = !part;
  };
  const mask = () => { // black and white: the edge of a stroke is half painted, and erasing would leave a trace
    const pixels = pen.getImageData(0, 0, width, height);
    for (let i = 0; i < pixels.data.length; i += 4) {
      pixels.data.fill(pixels.data[i + 3] > 127 ? 255 : 0, i, i + 3);
      pixels.data[i + 3] = 255;
    }
    const made = layer(width, height);
    made.getContext("2d").putImageData(pixels, 0, 0);
    return made.toDataURL("image/png");
  };
  const hand = () => {
    clearTimeout(timer);
    timer = 0;
    tool.report(share() ? mask() : "");
  };
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(hand, WAIT);
    tell(share());
  };
  const keep = (entry) => {
    list.push(entry);
    if (list.length > MOST) {
      const oldest = list.splice(0, MOST / 2), all = [...list];
      list.splice(0, list.length, ...oldest);
      redraw();
      const base = start.getContext("2d");
      base.clearRect(0, 0, width, height);
      base.drawImage(canvas, 0, 0);
      list.splice(0, list.length, ...all);
      redraw();
    }
    later();
  };

  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width * width, y: (event.clientY - box.top) / box.height * height };
  };
  const show = (point) => {
    place = point;
    ring.hidden = false;
    ring.style.left = `${point.x / width * 100}%`;
    ring.style.top = `${point.y / height * 100}%`;
    ring.style.width = `${Math.max(4, diameter() / width * canvas.clientWidth)}px`;
    ring.style.aspectRatio = "1";
  };
  const choose = (erase) => {
    erasing = erase;
    buttons.paint.setAttribute("aria-pressed", String(!erase));
    buttons.erase.setAttribute("aria-pressed", String(erase));
  };
  const undo = () => {
    if (!list.pop()) return;
    redraw();
    later();
  };
  const whole = (kind) => {
    const entry = { kind };
    act(entry);
    keep(entry);
  };

  canvas.onpointerdown = (event) => {
    if (event.button) return;
    event.preventDefault();
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    clearTimeout(timer); // not in the middle of a stroke
    stroke = { kind: "stroke", erase: erasing, size: diameter(), points: [at(event)], pointer: event.pointerId };
    line(stroke, 0);
    show(stroke.points[0]);
  };
  canvas.onpointermove = (event) => {
    show(at(event));
    if (!stroke || stroke.pointer !== event.pointerId) return;
    const from = stroke.points.length - 1, between = event.getCoalescedEvents?.() ?? [];
    stroke.points.push(...(between.length ? between : [event]).map(at));
    line(stroke, from);
  };
  canvas.onpointerup = canvas.onpointercancel = (event) => {
    if (!stroke || stroke.pointer !== event.pointerId) return;
    const done = stroke;
    stroke = null;
    if (event.pointerType !== "mouse") ring.hidden = true;
    keep(done);
  };
  canvas.onpointerleave = () => { if (!stroke) ring.hidden = true; };
  canvas.onblur = () => { ring.hidden = true; };
  canvas.onkeydown = (event) => {
    const step = Math.max(1, diameter() / 4);
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (way) {
      const within = (value, most) => Math.min(Math.max(value, 0), most);
      show({ x: within(place.x + way[0] * step, width), y: within(place.y + way[1] * step, height) });
    } else if (event.key === " ") {
      const dot = { kind: "stroke", erase: erasing, size: diameter(), points: [place] };
      line(dot, 0);
      show(place);
      keep(dot);
    } else if (event.key === "z" && (event.ctrlKey || event.metaKey)) undo();
    else return;
    event.preventDefault();
  };
  size.oninput = () => show(place);
  size.onchange = () => { ring.hidden = true; };
  buttons.paint.onclick = () => choose(false);
  buttons.erase.onclick = () => choose(true);
  buttons.undo.onclick = undo;
  buttons.clear.onclick = () => whole("clear");
  buttons.invert.onclick = () => whole("invert");
  choose(false);

  // Whoever presses "Make pictures" right after a stroke means the stroke, too.
  const soon = (event) => {
    if (timer && (event.key === "Enter" || !event.composedPath().includes(canvas))) hand();
  };
  tool.rest = () => {
    document.removeEventListener("pointerdown", soon, true);
    document.removeEventListener("keydown", soon, true);
  };
  tool.stop = () => { // another picture takes its place
    tool.rest();
    clearTimeout(timer);
  };
  tool.listen = () => {
    document.addEventListener("pointerdown", soon, true);
    document.addEventListener("keydown", soon, true);
    return tool.rest;
  };

  tell(0);
  if (data.mask) {
    const before = new Image();
    before.onload = () => {
      const context = start.getContext("2d", { willReadFrequently: true });
      context.drawImage(before, 0, 0, width, height);
      const pixels = context.getImageData(0, 0, width, height);
      for (let i = 0; i < pixels.data.length; i += 4) pixels.data[i + 3] = pixels.data[i]; // grey -> how opaque
      context.putImageData(pixels, 0, 0);
      context.globalCompositeOperation = "source-in";
      fill(context, COLOUR);
      context.globalCompositeOperation = "source-over";
      redraw();
      tell(share());
    };
    before.src = data.mask;
  }
  return tool;
}
