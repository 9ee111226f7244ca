// Classifies pictures in the visitor's browser. What comes from a file is set as text, never as HTML.
import * as ort from "./onnxruntime-web.js";
import { heatColours } from "./heat.js";

const MOST_PIXELS = 16e6;  // of a picture that the model resizes; the browser shrinks larger ones before
const SHOWN_SIZE = 1024;  // pixels of the picture's longer side on the page
const MOST_SHARES = 10;
const find = (selector) => document.querySelector(selector);
const percent = (share) => (100 * share).toFixed(1) + " %";
let facts, session;
let video = null;  // of the live camera, while that is on or about to be
let waiting = Promise.resolve();  // pictures are classified one after the other

function say(text) { find(".state").textContent = text; }

async function load() {
  facts = await (await fetch("model.json")).json();
  const good = facts.accuracy === null ? "how good it is has not been measured"
    : `${percent(facts.accuracy)} correct on ${facts.judged_on}`;
  find(".model").textContent = `Model ${facts.name}, ${facts.classes.length} classes `
    + `(${facts.classes.join(", ")}): ${good}. Version ${facts.version}.`;
  ort.env.wasm.numThreads = 1;  // more would need headers that many hosts cannot send
  ort.env.wasm.wasmPaths = { wasm: new URL("onnxruntime-web.wasm", location.href).href };
  const response = await fetch("model.onnx");
  if (!response.ok) throw new Error(`the server answers ${response.status}`);
  const model = new Uint8Array(await response.arrayBuffer());
  if (crypto.subtle && hex(await crypto.subtle.digest("SHA-256", model)) !== facts.sha256) {
    throw new Error("its files are of two exports");  // one is being uploaded, or comes from an older copy
  }
  session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
}

function hex(buffer) {
  return [...new Uint8Array(buffer)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Decode a file: upright, in the numbers of its pixels, as in training, which knows no colour profiles.
async function decode(file) {
  const settings = { colorSpaceConversion: "none" };
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image", ...settings });
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    bitmap = await createImageBitmap(file, settings);  // older browsers have no name for what they do
  }
  const scale = Math.sqrt(MOST_PIXELS / (bitmap.width * bitmap.height));
  if (scale >= 1) return bitmap;
  const size = { resizeWidth: Math.round(bitmap.width * scale), resizeHeight: Math.round(bitmap.height * scale) };
  const smaller = await createImageBitmap(bitmap, { ...size, resizeQuality: "high" });
  bitmap.close();
  return smaller;
}

// The planes of red, green and blue, on white where the picture is transparent; in strips, which phones have memory for.
function planes(bitmap) {
  const { width, height } = bitmap;
  const rows = Math.min(height, 512);
  const context = new OffscreenCanvas(width, rows).getContext("2d", { willReadFrequently: true, alpha: false });
  const pixels = new Uint8Array(3 * width * height);
  for (let top = 0; top < height; top += rows) {
    context.fillStyle = "white";
    context.fillRect(0, 0, width, rows);
    context.drawImage(bitmap, 0, -top);
    const count = width * Math.min(rows, height - top);
    const { data } = context.getImageData(0, 0, width, count / width);
    for (let plane = 0; plane < 3; plane++) {
      let to = plane * width * height + top * width;
      for (let from = plane; from < 4 * count; from += 4) pixels[to++] = data[from];
    }
  }
  return pixels;
}

async function classify(bitmap) {
  const photos = new ort.Tensor("uint8", planes(bitmap), [1, 3, bitmap.height, bitmap.width]);
  const found = await session.run({ photos });
  const shares = [...found.probabilities.data];
  const best = shares.indexOf(Math.max(...shares));
  const [, , height, width] = found.maps.dims;
  const map = found.maps.data.slice(best * height * width, (best + 1) * height * width);
  return { shares, best, map, height, width, unlike: found.unlike ? found.unlike.data[0] : null };
}

function show(bitmap, name, answer) {
  find(".shown").hidden = false;
  const photo = find(".photo"), heat = find(".heat");
  const scale = Math.min(1, SHOWN_SIZE / Math.max(bitmap.width, bitmap.height));
  photo.width = Math.max(1, Math.round(bitmap.width * scale));
  photo.height = Math.max(1, Math.round(bitmap.height * scale));
  photo.setAttribute("aria-label", name || "Picture of the camera");
  photo.getContext("2d").drawImage(bitmap, 0, 0, photo.width, photo.height);
  heat.width = heat.height = facts.image_size;
  const colours = heatColours(answer.map, answer.height, answer.width, facts.image_size, facts.colours);
  heat.getContext("2d").putImageData(new ImageData(colours, facts.image_size), 0, 0);
  find("h2").textContent = facts.classes[answer.best];
  const order = answer.shares.map((share, index) => [share, index]).sort((one, other) => other[0] - one[0]);
  find(".shares").replaceChildren(...order.slice(0, MOST_SHARES).map(([share, index]) => {
    const row = document.createElement("li"), meter = document.createElement("meter");
    const [label, number] = [facts.classes[index], percent(share)].map((text) => {
      const made = document.createElement("span");
      made.textContent = text;
      return made;
    });
    meter.value = share;
    meter.setAttribute("aria-label", facts.classes[index]);
    row.append(label, number, meter);
    return row;
  }));
  const before = find(".doubt").hidden;
  find(".doubt").hidden = !(answer.unlike > 1);
  if (answer.unlike > 1 && (before || !video)) {  // once, not with each picture of the camera
    find(".doubt").textContent = "Probably none of these: the picture is unlike the training photos "
      + `(${answer.unlike.toFixed(2)}; the limit is 1).`;
  }
  const blind = answer.unlike === null ? "The model cannot tell pictures of something else." : "";
  find(".about").textContent = [name, blind].filter(Boolean).join(" · ");
}

async function take(files) {
  if (!files.length || !session) return;
  stop();
  const [file] = files;
  say("One moment …");
  waiting = waiting.then(() => answer(file));
  await waiting;
}

async function answer(file) {
  let bitmap;
  try {
    bitmap = await decode(file);
  } catch {
    find(".shown").hidden = true;
    say(`${file.name} cannot be read: it is damaged, or no kind of picture that this browser knows.`);
    return;
  }
  try {
    const found = await classify(bitmap);
    show(bitmap, file.name, found);
    say(`${facts.classes[found.best]}, ${percent(found.shares[found.best])}`);
  } catch (error) {
    find(".shown").hidden = true;
    say(`${file.name} cannot be classified (${error.message}).`);
  } finally {
    bitmap.close();
  }
}

function stop() {
  if (!video) return;
  close(video);
  video = null;
  find(".live").setAttribute("aria-pressed", false);
  find(".live").textContent = "Live camera";
}

function close(shown) {
  shown.srcObject?.getTracks().forEach((track) => track.stop());
}

async function live() {
  if (video) { stop(); return; }
  const shown = video = document.createElement("video");
  try {
    shown.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    shown.muted = shown.playsInline = true;
    await shown.play();
  } catch (error) {
    close(shown);
    if (video !== shown) return;
    video = null;
    say(`The camera cannot be used (${error.message}).`);
    return;
  }
  if (video !== shown) { close(shown); return; }  // it was stopped, or a picture was given, in the meantime
  find(".live").setAttribute("aria-pressed", true);
  find(".live").textContent = "Stop the camera";
  say("");
  find(".doubt").hidden = true;
  while (video === shown) {
    waiting = waiting.then(() => answerFrame(shown)).catch((error) => {
      if (video !== shown) return;
      stop();
      say(`The camera stopped (${error.message}).`);
    });
    await waiting;
    await new Promise(requestAnimationFrame);
  }
}

async function answerFrame(shown) {
  if (video !== shown) return;
  const bitmap = await createImageBitmap(shown);
  try {
    const found = await classify(bitmap);
    if (video === shown) show(bitmap, "", found);
  } finally {
    bitmap.close();
  }
}

function listen() {
  for (const way of [".choose", ".photograph"]) {
    find(way).disabled = false;
    find(way).onchange = (event) => {
      const files = [...event.target.files];
      event.target.value = "";  // so that the same file can be chosen again
      take(files);
    };
  }
  window.addEventListener("drop", (event) => take([...event.dataTransfer.files]));
  window.addEventListener("paste", (event) => take([...event.clipboardData.files]));
  find(".live").hidden = !navigator.mediaDevices?.getUserMedia;
  find(".live").onclick = live;
}

// On the whole page, and before the model is there: a picture dropped beside the frame would take the page's place.
window.addEventListener("dragover", (event) => { event.preventDefault(); find(".drop").classList.add("over"); });
window.addEventListener("dragleave", () => find(".drop").classList.remove("over"));
window.addEventListener("drop", (event) => { event.preventDefault(); find(".drop").classList.remove("over"); });
find(".strength input").oninput = (event) => {
  document.documentElement.style.setProperty("--strength", event.target.value);
};

try {
  await load();
  listen();
  say("");
} catch (error) {
  say(`The model cannot be loaded (${error.message}); reload the page.`);
}
if (navigator.serviceWorker) {  // only with https, or on the machine itself
  const none = () => { find(".offline").textContent = "This browser keeps no copy of the page for times without a network."; };
  navigator.serviceWorker.register("service-worker.js").then((registration) => {
    const worker = registration.installing;
    worker?.addEventListener("statechange", () => { if (worker.state === "redundant" && !registration.active) none(); });
    return navigator.serviceWorker.ready;
  }).then(() => { find(".offline").textContent = "The page works without a network from now on."; }, none);
}
