// The page: takes a model, sound and units, and keeps the pictures of the last seconds up to date.

import { Microphone, RATE, Recording } from "./audio.js";
import { Model } from "./model.js";
import { draw, movePlayhead, nameLayer } from "./pictures.js";
import { CODEBOOK, SETTINGS, Units } from "./units.js";

const RUNS = 15; // whose median time is shown; a still picture is computed as often
const find = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const player = find("player");

let model = null;
let source = null;
let units = null;
let times = []; // seconds of computing per second of audio, of the latest runs

/** What the pictures show (see `draw`); also for the browser's console and the test. */
export let shown = null;

// --- messages

function say(text) {
  if (find("status").textContent !== text) find("status").textContent = text;
  find("status").hidden = !text;
}

function complain(text) {
  find("problem").textContent = text;
  find("problem").hidden = !text;
}

/** Does what the user asked for; what goes wrong is said on the page. */
async function attempt(action) {
  complain("");
  try {
    await action();
  } catch (error) {
    complain(error.message);
  }
}

// --- what the user gives

async function openModel(name, bytes) {
  say(`Opening ${name} …`);
  try {
    const opened = await Model.open(name, new Uint8Array(bytes), query.get("ort"));
    await model?.close();
    model = opened;
  } finally {
    say(model ? "Now speak, or choose an audio file." : "Choose a model, then speak or choose an audio file.");
  }
  const { layers, parameters, config } = model;
  const millions = (parameters / 1e6).toFixed(2);
  find("model-facts").textContent =
    `${name}: ${layers} layers of ${config.embed_dim} channels, ${millions} M parameters`;
  Object.assign(find("layer"), { max: layers, value: Math.ceil(layers / 2) });
  nameLayer();
  [times, shown] = [[], null];
  if (units) useUnits(units);
}

/** Microphone, Recording or null: nothing. */
function useSource(opened) {
  source?.stop();
  source = opened;
  const live = source instanceof Microphone;
  find("microphone").setAttribute("aria-pressed", live);
  find("microphone").textContent = live ? "Stop" : "Microphone";
  player.hidden = !(source instanceof Recording);
  if (source) shown = null;
}

async function openAudio(name, bytes) {
  useSource(await Recording.open(name, bytes, player));
  find("sound-facts").textContent = `${name}: ${(source.samples.length / RATE).toFixed(1)} s`;
}

async function toggleMicrophone() {
  useSource(source instanceof Microphone ? null : await Microphone.open());
  find("sound-facts").textContent = source ? "Listening" : "Stopped";
}

function useUnits(opened) {
  [units, shown] = [null, null];
  find("unit-facts").textContent = "";
  if (model) opened.check(model);
  units = opened;
  const { layers, units: count, stages } = units.settings;
  find("unit-facts").textContent = `${stages > 1 ? `${stages} × ` : ""}${count} units of layer ${layers.join(", ")}`;
  if (layers.length === 1) find("layer").value = layers[0];
  nameLayer();
}

/** Chosen or dropped files: those of a units folder, a model, or sound. */
async function openFiles(files) {
  const named = (name) => files.find((file) => file.name === name);
  if (named(SETTINGS) || named(CODEBOOK)) {
    if (!named(SETTINGS) || !named(CODEBOOK)) throw new Error(`Choose both ${SETTINGS} and ${CODEBOOK}.`);
    return useUnits(new Units(await named(SETTINGS).text(), await named(CODEBOOK).arrayBuffer()));
  }
  const [{ name }] = files;
  const open = name.toLowerCase().endsWith(".onnx") ? openModel : openAudio;
  return open(name, await files[0].arrayBuffer());
}

// --- what the address gives: ?model=URL&audio=URL&units=FOLDER

async function fetched(url) {
  const response = await fetch(url).catch(() => null);
  if (!response?.ok) throw new Error(`${url} could not be loaded${response ? ` (${response.status})` : ""}`);
  return response;
}

async function openQuery() {
  if (!globalThis.WebAssembly || !globalThis.AudioWorkletNode)
    throw new Error("This browser lacks WebAssembly or audio worklets. Use a current Chrome, Edge, Firefox or Safari.");
  for (const [key, open] of [["model", openModel], ["audio", openAudio]]) {
    const url = query.get(key);
    if (url) await open(url.split("/").pop(), await (await fetched(url)).arrayBuffer());
  }
  const folder = query.get("units")?.replace(/\/$/, "");
  if (folder) {
    const [settings, codebook] = await Promise.all([SETTINGS, CODEBOOK].map((name) => fetched(`${folder}/${name}`)));
    useUnits(new Units(await settings.text(), await codebook.arrayBuffer()));
  }
}

// --- the loop

/** Computes and draws the latest seconds, unless that has been done. */
async function update() {
  const recent = source.recent(Number(find("seconds").value) * RATE, model.step);
  const { samples, start } = recent;
  const live = source instanceof Microphone;
  if (samples.length < model.shortest) return say(live ? "Listening …" : "The file is too short for a frame.");
  const same = shown?.start === start && shown.samples.length === samples.length;
  if (same && times.length >= RUNS) return;
  const asked = [model, source, units, times];
  const result = await model.run(samples);
  if ([model, source, units, times].some((now, index) => now !== asked[index])) return; // something else was chosen
  say("");
  shown = { ...recent, result, streams: units?.of(result), live };
  draw(shown);
  times = [...times, (result.milliseconds * RATE) / 1000 / samples.length].slice(-RUNS);
  const median = [...times].sort((a, b) => a - b)[times.length >> 1];
  find("pace").textContent = `${median.toFixed(3)} s (${(1 / median).toPrecision(2)} × real time)`;
}

async function watch() {
  try {
    if (model && source) await update();
  } catch (error) {
    useSource(null); // or it would go wrong again and again
    complain(`The student cannot be run on this: ${error.message}`);
  }
  movePlayhead(shown, player.currentTime);
  requestAnimationFrame(watch);
}

// --- what the user does

for (const id of ["model-file", "audio-file", "unit-files"]) {
  find(id).addEventListener("change", ({ target }) => {
    const files = [...target.files];
    target.value = ""; // the same file may be chosen again
    if (files.length) attempt(() => openFiles(files));
  });
}
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  const files = [...event.dataTransfer.files];
  if (files.length) attempt(() => openFiles(files));
});
find("microphone").addEventListener("click", () => attempt(toggleMicrophone));
find("layer").addEventListener("input", nameLayer);
for (const id of ["layer", "scaling"]) find(id).addEventListener("input", () => shown && draw(shown));
find("seconds").addEventListener("input", () => (times = []));

await attempt(openQuery);
watch();
