"use strict";
// What the audit's page asks and what is decided, kept in this browser; page.js shows it.

const data = JSON.parse(document.getElementById("data").textContent);
const KEEP = "keep", EXCLUDE = "exclude", RELABEL = "relabel";
const byId = (id) => document.getElementById(id);

const asked = data.photos.filter((photo) => photo.cell !== undefined);
const known = new Map(asked.map((photo) => [photo.cell, photo]));
const earlier = new Map(data.earlier.map((row) => [row[0], row]));
const own = new Map(); // path in the CSV -> [action, label in the CSV]

function decision(photo) {
  const before = earlier.get(photo.cell);
  return own.get(photo.cell) ?? (before && before[3] === photo.sha256 ? [before[1], before[2]] : undefined);
}

function otherClasses(photo) {
  const first = [photo.likely, ...photo.near.map((both) => both[0])];
  const every = [...first, ...data.classes.keys()];
  return [...new Set(every)].filter((label) => label >= 0 && label !== photo.label);
}

// ---------------------------------------------------------------- kept in this browser

function warn(sentence) {
  byId("warning").textContent = sentence;
  byId("warning").hidden = !sentence;
}

function store() {
  try {
    localStorage.setItem(data.key, JSON.stringify([...own]));
    warn("");
  } catch (error) {
    const full = error.name === "QuotaExceededError";
    const why = full ? "This browser's storage is full" : "This browser does not let the page store anything";
    warn(`${why}, so a reload loses your decisions: save review.csv before you close the page.`);
  }
}

function restore() {
  own.clear();
  try {
    for (const [cell, made] of JSON.parse(localStorage.getItem(data.key) ?? "[]")) {
      if (known.has(cell) && [KEEP, EXCLUDE, RELABEL].includes(made[0])) own.set(cell, made);
    }
  } catch (error) { // barred, or what is stored is damaged
    own.clear();
  }
}

window.addEventListener("beforeunload", (event) => {
  if (!byId("warning").hidden && own.size) event.preventDefault();
});

function csv() {
  const rows = new Map(data.earlier.map((row) => [row[0], row]));
  for (const photo of asked) {
    const made = own.get(photo.cell);
    if (made) rows.set(photo.cell, [photo.cell, ...made, photo.sha256]);
  }
  const quoted = (cell) => (/[",\r\n']/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);
  return [data.header, ...rows.values()].map((row) => row.map(quoted).join(",") + "\n").join("");
}
