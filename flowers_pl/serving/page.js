// Runs in the visitor's browser, in the component that page.html draws; `props` and `trigger` are Gradio's, and
// table.html is another component. Everything that comes from a file or from the server is set as text, never as HTML.
const find = (selector) => document.querySelector(selector);
const MOST_FILES = Math.min(8, $MAX_FILES);  // of a request, so that answers come as they are made
const MOST_BYTES = Math.min(8e6, Math.floor(0.9 * $MAX_BYTES));  // which a phone sends in time
const percent = (share) => (100 * share).toFixed(1) + " %";
let classes = [];
let rows = [];  // {file, address, answer}
let selected = null;
let calls = 0;  // of `take` whose pictures are not all in the table yet
let given = 0;  // pictures that the table will have
let waiting = Promise.resolve();  // pictures that come while others are classified wait for them

function say(text) { find(".state").textContent = text; }

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options });
  } catch {
    return { status: 0, answer: { error: "The server cannot be reached." } };
  }
  let answer;
  try { answer = await response.json(); } catch { answer = { error: `The server answers ${response.status}.` }; }
  return { status: response.status, answer };
}

async function showModel() {
  for (;;) {
    const { status, answer } = await ask("/model", {});
    if (status === 429 || status === 503) { await new Promise((later) => setTimeout(later, 1000)); continue; }
    if (answer.error) { find(".model").textContent = answer.error; return; }
    classes = answer.classes;
    const good = answer.accuracy === null ? "how good it is has not been measured"
      : `${percent(answer.accuracy)} correct on ${answer.judged_on}`;
    find(".model").textContent = `Model ${answer.name}, ${answer.classes.length} classes `
      + `(${answer.classes.join(", ")}): ${good}. Version ${answer.version}.`;
    return;
  }
}

// Send files, a few in a request; a server that is busy, or was not reached, is asked again. A refusal says nothing
// about the files.
async function classify(files, heat) {
  const form = new FormData();
  for (const file of files) form.append("files", file, file.name || "picture");
  for (let busy = 0, lost = 0; ;) {
    const { status, answer } = await ask(`/classify?heatmap=${heat}`, { method: "POST", body: form });
    if (status === 0 ? lost++ < 3 : (status === 429 || status === 503) && busy++ < 20) {
      await new Promise((later) => setTimeout(later, 1000));
      continue;
    }
    if (answer.results) return answer.results;
    if (status === 408 && files.length > 1) {  // too slowly: one by one
      const answers = [];
      for (const file of files) answers.push(...await classify([file], heat));
      return answers;
    }
    const error = status === 401 ? "This server asks for its token; reload the page." : answer.error;
    return files.map(() => ({ probabilities: {}, label: null, refused: true, error }));
  }
}

// A folder, or a file that has gone since it was chosen, would end its whole request.
async function isReadable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
    return true;
  } catch {
    return false;
  }
}

async function classifyReadable(files, heat) {
  const readable = await Promise.all(files.map(isReadable));
  const sent = files.filter((_, index) => readable[index]);
  const answers = sent.length ? await classify(sent, heat) : [];
  const unread = { probabilities: {}, label: null, error: "is a folder, or cannot be read by the browser any more" };
  return readable.map((one) => one ? answers.shift() : unread);
}

function* batches(files) {
  let batch = [], bytes = 0;
  for (const file of files) {
    if (batch.length && (batch.length === MOST_FILES || bytes + file.size > MOST_BYTES)) {
      yield batch;
      batch = []; bytes = 0;
    }
    batch.push(file);
    bytes += file.size;
  }
  if (batch.length) yield batch;
}

function take(files) {
  if (!files.length) return;
  const anew = calls === 0;
  calls += 1;
  given = anew ? files.length : given + files.length;
  waiting = waiting.then(() => answer(files, anew));
}

async function answer(files, anew) {
  if (anew) {
    rows.forEach((row) => URL.revokeObjectURL(row.address));
    rows = []; selected = null;
    find("tbody").replaceChildren();
  }
  find(".many").hidden = given < 2;
  try {
    for (const batch of batches(files)) {
      say(`${rows.length} of ${given} pictures classified …`);
      const answers = await classifyReadable(batch, files.length === 1);
      batch.forEach((file, index) => {
        rows.push({ file, address: URL.createObjectURL(file), answer: answers[index] });
        addRow(rows.length - 1);
      });
      if (selected === null) await select(0);
    }
    const read = rows.filter((row) => !row.answer.error), [first] = read;
    if (given > 1) say(`${read.length} of ${given} pictures classified.`);
    else say(first ? `${first.answer.label}, ${percent(first.answer.probabilities[first.answer.label])}` : "");
  } catch (error) {
    say(error.message);
  } finally {
    calls -= 1;
  }
}

function remark(answer) {
  if (answer.error) return answer.error;
  return answer.unknown ? "probably none of these" : "";
}

function cell(row, content) {
  const made = row.insertCell();
  made.append(content);
}

function addRow(index) {
  const { file, address, answer } = rows[index];
  const row = find("tbody").insertRow();
  const look = document.createElement("button"), picture = document.createElement("img");
  picture.src = address;
  picture.alt = "";
  look.setAttribute("aria-label", `Show ${file.name || "picture"}`);
  look.append(picture);
  cell(row, look);
  cell(row, file.name || "picture");
  cell(row, answer.label ?? "");
  cell(row, answer.label === null ? "" : percent(answer.probabilities[answer.label]));
  cell(row, remark(answer));
  row.onclick = () => select(index);  // the button's clicks, too
}

async function select(index) {
  const row = rows[index];
  selected = index;
  [...find("tbody").rows].forEach((one, at) => one.setAttribute("aria-current", at === index));
  show(row);
  if (row.answer.error || row.answer.heatmap || row.asked) return;  // maps of many are made when looked at
  row.asked = true;
  row.failed = null;
  try {
    const [made] = await classifyReadable([row.file], true);
    if (made.error) row.failed = made.error;
    else row.answer = made;
  } catch (error) {
    row.failed = error.message;
  }
  row.asked = row.failed === null;  // else it is asked again
  if (rows[selected] === row) show(row);
}

function show({ file, address, answer, asked, failed }) {
  find(".shown").hidden = false;
  find(".photo").src = address;
  find(".photo").alt = file.name || "picture";
  if (answer.heatmap) find(".heat").src = "data:image/png;base64," + answer.heatmap;
  else find(".heat").removeAttribute("src");
  const doubt = find(".doubt");
  doubt.hidden = !answer.unknown && !answer.error;
  doubt.textContent = answer.refused ? answer.error : answer.error ? `This file cannot be read: ${answer.error}.`
    : answer.unknown ? "Probably none of these: the picture is unlike the training photos "
      + `(${answer.unlike.toFixed(2)}; the limit is 1).` : "";
  const without = [];
  if (!answer.error && answer.unlike === null) without.push("The model cannot tell pictures of something else.");
  if (failed) without.push(`There is no heat map: ${failed}`);
  else if (!answer.error && !answer.heatmap && (asked || rows.length === 1)) without.push("It has no heat maps.");
  find(".about").textContent = [file.name, ...without].filter(Boolean).join(" · ");
  const confidences = Object.entries(answer.probabilities)
    .map(([label, confidence]) => ({ label, confidence }))
    .sort((one, other) => other.confidence - one.confidence)
    .slice(0, 10);
  props.value = answer.error ? { label: "", confidences: [] } : { label: answer.label, confidences };
  trigger("change");
}

// As `predict` writes its table; a leading apostrophe keeps spreadsheets from running a cell.
function quoted(value) {
  let text = value === null || value === undefined ? "" : String(value);
  if (typeof value === "string" && /^'*[=+\-@\t\r\n＝＋－＠]/.test(text)) text = "'" + text;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function save() {
  const reserved = ["path", "label", "unlike", "unknown", "error", "teacher:fold", "teacher:photos"];
  if (!classes.length) classes = Object.keys(rows.find((row) => row.answer.label !== null)?.answer.probabilities ?? {});
  const scored = rows.some((row) => typeof row.answer.unlike === "number") ? ["unlike", "unknown"] : [];
  const header = ["path", "label", ...classes.map((name) => reserved.includes(name) ? `class:${name}` : name),
    ...scored, "error"];
  const yes = (unknown) => unknown === true ? "yes" : unknown === false ? "no" : "";
  const lines = rows.map(({ file, answer }) => [file.name || "picture", answer.label,
    ...classes.map((name) => answer.probabilities[name]?.toFixed(6)),
    ...(scored.length ? [answer.unlike?.toFixed(4), yes(answer.unknown)] : []), answer.error]);
  const text = [header, ...lines].map((line) => line.map(quoted).join(",")).join("\r\n") + "\r\n";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = "predictions.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function listen() {
  for (const way of [".choose", ".photograph"]) {
    find(way).onchange = (event) => {
      const files = [...event.target.files];
      event.target.value = "";  // so that the same file can be chosen again
      take(files);
    };
  }
  // On the whole page: a picture dropped beside the frame would take its place.
  window.addEventListener("dragover", (event) => { event.preventDefault(); find(".drop").classList.add("over"); });
  window.addEventListener("dragleave", () => find(".drop").classList.remove("over"));
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    find(".drop").classList.remove("over");
    take([...event.dataTransfer.files]);
  });
  window.addEventListener("paste", (event) => take([...event.clipboardData.files]));
  find(".save").onclick = save;
  showModel().catch((error) => { find(".model").textContent = error.message; });
}

function begin() {
  if (find(".many") === null) setTimeout(begin, 50);  // until the other component is there, too
  else listen();
}
begin();
