// The audit's page: findings, the photo in question, clicks and keys. Names are set as text only. It is one script
// with decisions.js, which comes before it.

const undone = []; // [path in the CSV, what was decided before, place]
const entries = []; // of all sections, with their elements
const places = []; // [entry, photo] in the order of the page; a photo may be in several
let current = -1;
let lastKey = ""; // a class is chosen by Enter, or by its whole name
const touch = window.matchMedia("(max-width: 820px)");

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function picture(number, className, alt = "") {
  const stored = byId(`p${number}`);
  if (!stored) return make("div", { className: `none ${className}`, textContent: "no picture" });
  return make("img", { className, alt, src: `data:image/webp;base64,${stored.textContent}` });
}

function choices(photo, large) {
  const made = decision(photo);
  const row = make("div", { className: "choices" });
  const others = otherClasses(photo);
  const button = (key, text, action, label) => {
    const pressed = Boolean(made && made[0] === action && (action !== RELABEL || made[1] === data.classes[label].cell));
    const one = make("button", { type: "button" }, text, " ");
    one.setAttribute("aria-pressed", String(pressed));
    if (large && key <= 9) one.append(make("kbd", { textContent: key }));
    one.dataset.action = action;
    if (label !== undefined) one.dataset.label = label;
    row.append(one);
  };
  button(1, large ? `Keep as ${data.classes[photo.label].name}` : "Keep", KEEP);
  button(2, "Leave out", EXCLUDE);
  const direct = large ? 7 : photo.likely >= 0 && !touch.matches ? 1 : 0;
  const keyed = others.slice(0, direct);
  keyed.forEach((label, index) => button(index + 3, `It is a ${data.classes[label].name}`, RELABEL, label));
  const rest = others.filter((label) => !keyed.includes(label));
  if (rest.length && large) { // a name to type: a list would choose with every letter
    const names = make("datalist", { id: "names" }, ...rest.map((label) => make("option", { value: data.classes[label].name })));
    const chosen = rest.find((label) => made && made[0] === RELABEL && made[1] === data.classes[label].cell);
    const value = chosen === undefined ? "" : data.classes[chosen].name;
    const field = make("input", { type: "text", placeholder: "It is a …", autocomplete: "off", defaultValue: value, className: value && "chosen" });
    field.setAttribute("list", "names");
    field.setAttribute("aria-label", "It is a");
    row.append(make("label", {}, field, " ", make("kbd", { textContent: "0" })), names);
  } else if (rest.length) {
    const list = make("select", {}, make("option", { value: "", textContent: "It is a …" }));
    list.setAttribute("aria-label", "It is a");
    if (photo.likely < 0 || direct) rest.sort((one, two) => one - two);
    for (const label of rest) {
      const selected = Boolean(made && made[0] === RELABEL && made[1] === data.classes[label].cell);
      list.append(make("option", { value: label, textContent: data.classes[label].name, selected }));
      if (selected) list.className = "chosen";
    }
    row.append(list);
  }
  return row;
}

function draw(entry) {
  const lines = entry.photos.map((number) => {
    const photo = data.photos[number];
    const line = make("div", { className: "photo" }, picture(number, ""), make("p", { className: "name", textContent: photo.name }));
    if (photo.cell === undefined || !entry.section.asks) return line;
    line.classList.add("asked");
    line.classList.toggle("done", Boolean(decision(photo)));
    line.dataset.photo = number;
    line.append(choices(photo, false));
    if (current >= 0 && places[current][0] === entry && places[current][1] === photo) line.classList.add("current");
    return line;
  });
  entry.element.replaceChildren(make("p", { textContent: entry.text, title: entry.text }), ...lines);
  entry.drawn = true;
}

function refresh(photo) { // wherever it is shown
  for (const [entry, one] of places) if (one === photo && entry.drawn) draw(entry);
  count();
}

function count() {
  const open = asked.filter((photo) => !decision(photo)).length;
  const left = asked.length === 0 ? "Nothing to decide" : open ? `${open.toLocaleString("en")} of ${asked.length.toLocaleString("en")} left` : "All decided: save review.csv";
  if (byId("left").textContent !== left) byId("left").textContent = left;
  Object.assign(byId("progress"), { max: Math.max(asked.length, 1), value: asked.length - open, hidden: !asked.length });
  byId("undo").disabled = !undone.length;
  byId("save").disabled = !own.size && !earlier.size;
}

function drawView() {
  const view = byId("view");
  view.hidden = current < 0;
  if (current < 0) return;
  const [entry, photo] = places[current];
  const number = data.photos.indexOf(photo);
  const reasons = new Set(places.filter((place) => place[1] === photo).map(([one]) => `${one.section.title}: ${one.text}`));
  const close = make("button", { type: "button", id: "close", textContent: "Close" });
  close.addEventListener("click", () => view.classList.remove("open"));
  const row = (title, numbers) => numbers.length
    ? [make("h3", { textContent: title }), make("div", { className: "near" }, ...numbers.map((one) => picture(one, "", data.photos[one].name)))]
    : [];
  const copies = entry.photos.filter((one) => one !== number);
  view.replaceChildren(
    close,
    picture(number, "large", "The photo in question"),
    make("p", { className: "name", textContent: photo.name }),
    ...[...reasons].map((why) => make("p", { className: "why", textContent: why.replace(/: $/, "") })),
    choices(photo, true),
    ...row("Beside it in this finding", copies.slice(0, 3)),
    ...photo.near.flatMap(([label, numbers]) => row(`Most like it among ${data.classes[label].name}`, numbers)),
    ...(photo.near.length ? [] : [make("p", { className: "hint", textContent: "No network looked at the photos, so none are shown that are like it." })]),
  );
  view.querySelector(".choices").addEventListener("click", (event) => clicked(event, photo));
  view.querySelector(".choices").addEventListener("change", (event) => typed(event, photo));
}

function move(place) { // the mark of the photo in question
  const before = current;
  current = place;
  if (before >= 0 && places[before][0].drawn) draw(places[before][0]);
}

function go(place) {
  if (place < 0 || place >= places.length) return;
  move(place);
  const [entry, photo] = places[place];
  draw(entry);
  entry.element.querySelector(".current").scrollIntoView({ block: "nearest" });
  byId("view").scrollTop = 0;
  drawView();
}

// ---------------------------------------------------------------- clicks and keys

function decide(photo, action, label) {
  undone.push([photo.cell, own.get(photo.cell), current]);
  own.set(photo.cell, [action, action === RELABEL ? data.classes[label].cell : ""]);
  store();
  refresh(photo);
  const open = (place) => places[place][0].section.asks && !decision(places[place][1]);
  const after = [...places.keys()].slice(current + 1).concat([...places.keys()].slice(0, current + 1));
  const next = after.find(open);
  if (next !== undefined) go(next);
  else drawView();
}

function undo() {
  const last = undone.pop();
  if (!last) return;
  const [cell, before, place] = last;
  if (before) own.set(cell, before);
  else own.delete(cell);
  store();
  refresh(known.get(cell));
  go(place);
}

function save() {
  const link = make("a", { href: URL.createObjectURL(new Blob([csv()], { type: "text/csv" })), download: "review.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

window.addEventListener("storage", (event) => { // the same page in another tab
  if (event.key !== data.key && event.key !== null) return;
  restore();
  undone.length = 0;
  for (const entry of entries) if (entry.drawn) draw(entry);
  count();
  drawView();
});

function clicked(event, photo) {
  if (event.detail > 1) return; // the second click of a double one: another photo is there now
  const button = event.target.closest("button[data-action]");
  if (button) decide(photo, button.dataset.action, Number(button.dataset.label));
}

function typed(event, photo) { // a class's name, or a beginning that only one has
  const text = event.target.value.trim().toLowerCase();
  const names = data.classes.map((one) => one.name.toLowerCase());
  const begin = [...names.keys()].filter((label) => text && lastKey === "Enter" && names[label].startsWith(text));
  const label = names.indexOf(text) >= 0 ? names.indexOf(text) : begin.length === 1 ? begin[0] : -1;
  event.target.setAttribute("aria-invalid", String(label < 0));
  if (label >= 0) decide(photo, label === photo.label ? KEEP : RELABEL, label);
}

function placeOf(event) {
  const line = event.target.closest(".asked");
  if (!line) return -1;
  const entry = entries[line.closest(".entry").dataset.entry];
  return places.findIndex(([one, photo]) => one === entry && photo === data.photos[line.dataset.photo]);
}

byId("sections").addEventListener("click", (event) => {
  const place = placeOf(event);
  if (place < 0 || event.target.closest("select")) return;
  const button = event.target.closest("button[data-action]");
  if (!button) {
    go(place);
    if (touch.matches) byId("view").classList.add("open");
    return;
  }
  if (event.detail > 1) return; // as in clicked(): the rows may have moved
  move(place);
  decide(places[place][1], button.dataset.action, Number(button.dataset.label));
});
byId("sections").addEventListener("change", (event) => {
  const place = placeOf(event);
  const label = event.target.value;
  if (place < 0 || label === "") return;
  move(place);
  decide(places[place][1], RELABEL, Number(label));
});
byId("undo").addEventListener("click", undo);
byId("save").addEventListener("click", save);

function digit(key) {
  if (current < 0) return;
  const photo = places[current][1];
  if (key === 0) byId("view").querySelector("input")?.focus();
  else if (key === 1) decide(photo, KEEP);
  else if (key === 2) decide(photo, EXCLUDE);
  else if (otherClasses(photo)[key - 3] !== undefined) decide(photo, RELABEL, otherClasses(photo)[key - 3]);
}

document.addEventListener("keydown", (event) => {
  const undoing = (event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && !event.shiftKey;
  const saving = (event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "s";
  lastKey = event.key;
  if (event.altKey || ((event.ctrlKey || event.metaKey) && !undoing && !saving)) return;
  if (event.target.closest("select") && !undoing && !saving && /^(Arrow(Up|Down)|Page(Up|Down)|Home|End|[^ ])$/.test(event.key)) {
    event.preventDefault(); // a closed list would choose with every key
    event.target.closest("select").showPicker?.();
    return;
  }
  if (event.target.closest("select, input, textarea") && event.key !== "Escape") return;
  if (event.repeat && !event.key.startsWith("Arrow")) { // a key that is held decides once
    if (undoing || saving) event.preventDefault();
    return;
  }
  if (undoing || event.key === "u" || event.key === "U") undo();
  else if (saving || event.key === "s" || event.key === "S") save();
  else if (event.key === "ArrowRight" || event.key === "ArrowDown") go(Math.min(current + 1, places.length - 1));
  else if (event.key === "ArrowLeft" || event.key === "ArrowUp") go(Math.max(current - 1, 0));
  else if (/^[0-9]$/.test(event.key)) digit(Number(event.key));
  else if (event.key === "Escape") {
    byId("view").classList.remove("open");
    if (event.target.matches("#view input")) event.target.value = event.target.defaultValue; // nothing is chosen
    document.activeElement.blur();
  } else return;
  event.preventDefault();
});

// ---------------------------------------------------------------- the rows, drawn as they scroll in

const watcher = new IntersectionObserver((seen) => {
  for (const { target, isIntersecting } of seen) {
    const entry = entries[target.dataset.entry];
    if (isIntersecting && !entry.drawn) draw(entry);
    else if (!isIntersecting && entry.drawn && !target.contains(document.activeElement)) {
      entry.drawn = false;
      target.replaceChildren();
    }
  }
}, { rootMargin: "1000px" });

restore();
data.sections.forEach((section, index) => {
  const number = section.entries.length + section.more;
  const list = make("div");
  const title = () => [`${section.title} `, make("span", { textContent: number.toLocaleString("en") })];
  for (const [photos, text] of section.entries) {
    const entry = { section, photos, text, drawn: false, element: make("div", { className: "entry" }) };
    entry.element.style.setProperty("--n", photos.length);
    entry.element.dataset.entry = entries.push(entry) - 1;
    if (section.asks) for (const one of photos) if (data.photos[one].cell !== undefined) places.push([entry, data.photos[one]]);
    list.append(entry.element);
  }
  const where = section.asks ? "decide on these, save, and ask for the rest with 'audit --review review.csv'" : "in audit.txt and audit.json";
  if (section.more) list.append(make("p", { textContent: `… and ${section.more.toLocaleString("en")} more: ${where}.` }));
  byId("sections").append(make("section", {}, make("h2", { id: `s${index}` }, ...title()), make("p", { className: "meaning", textContent: section.meaning }), list));
  byId("contents").append(make("li", {}, make("a", { href: `#s${index}` }, ...title())));
});
for (const entry of entries) watcher.observe(entry.element);
count();
const first = places.findIndex(([, photo]) => !decision(photo));
if (places.length) {
  current = Math.max(first, 0);
  drawView();
}
if (asked.length) store(); // says so at once where it cannot
