// The pictures of what `page.js` has computed, and the numbers beside them.

import { RATE } from "./audio.js";
import { RISING, SIGNED, gradient, matrix, quantiles, strip } from "./drawing.js";
import { layerOf } from "./model.js";
import { gram, standardised } from "./similarity.js";
import { BANDS, HOP, logMel } from "./spectrogram.js";

const find = (id) => document.getElementById(id);

/** Says everywhere which layer is chosen. */
export function nameLayer() {
  for (const label of document.querySelectorAll(".layer")) label.textContent = find("layer").value;
}

/**
 * Draws all of it, for the layer and the comparison chosen on the page.
 *
 * samples, start, room: what was computed on, where it starts, and how many samples the pictures have room for;
 * result: of `Model.run`; streams: of `Units.of`, or undefined; live: whether it comes from the microphone.
 */
export function draw({ samples, start, room, result, streams, live }) {
  const states = layerOf(result, Number(find("layer").value));
  const roomFrames = Math.round((room / samples.length) * result.frames);
  drawSpectrogram(samples, room);
  drawStates(states, result, roomFrames);
  drawGram(states, result, roomFrames);
  drawUnits(streams, roomFrames, samples.length / RATE);
  find("from").textContent = `${((live ? -room : start) / RATE).toFixed(1)} s`;
  find("to").textContent = live ? "now" : `${((start + room) / RATE).toFixed(1)} s`;
}

function drawSpectrogram(samples, room) {
  const { values, columns } = logMel(samples);
  const [low, high] = quantiles(values, 0.05, 0.995);
  const at = (row, column) => values[column * BANDS + BANDS - 1 - row]; // low frequencies below
  const whole = Math.max(columns, Math.floor(room / HOP));
  matrix(find("mel"), { rows: BANDS, columns, room: whole, at, low, high, ramp: RISING });
}

function drawStates(states, { frames, channels }, room) {
  const even = standardised(states, frames, channels);
  const at = (row, column) => even[column * channels + row];
  matrix(find("states"), { rows: channels, columns: frames, room, at, low: -2.5, high: 2.5, ramp: SIGNED });
}

function drawGram(states, { frames, channels }, room) {
  const scaling = find("scaling").value;
  const products = gram(states, frames, channels, scaling);
  const [low, high] = quantiles(products, 0.02, 0.98);
  const largest = Math.max(-low, high);
  const colours =
    scaling === "centred" ? { low: -largest, high: largest, ramp: SIGNED } : { low, high, ramp: RISING };
  const at = (row, column) => products[row * frames + column];
  matrix(find("gram"), { rows: frames, columns: frames, room, height: room, at, ...colours });
  find("gram-low").textContent = colours.low.toPrecision(2);
  find("gram-high").textContent = colours.high.toPrecision(2);
  find("gram-key").style.background = gradient(colours.ramp);
}

function drawUnits(streams, room, seconds) {
  find("unit-figure").hidden = !streams;
  if (!streams) return;
  const canvases = streams.map(({ layer, stage, units }) => {
    const canvas = Object.assign(document.createElement("canvas"), { className: "strip", role: "img" });
    canvas.ariaLabel = `Units of layer ${layer}, stage ${stage}`;
    strip(canvas, units, room);
    return canvas;
  });
  find("strips").replaceChildren(...canvases);
  const [{ layer, units }] = streams;
  const changes = units.filter((unit, frame) => unit !== units[frame - 1]).length;
  find("unit-counts").textContent =
    `of layer ${layer}: ${new Set(units).size} different ones, ${Math.round(changes / seconds)} changes a second`;
}

/** Shows where the player is, `seconds` into the file; hidden without a file, and before it plays. */
export function movePlayhead(shown, seconds) {
  const playhead = find("playhead");
  playhead.hidden = !shown || shown.live || !seconds;
  if (playhead.hidden) return;
  const { offsetLeft, offsetWidth } = find("mel");
  const share = (seconds * RATE - shown.start) / shown.room;
  playhead.style.left = `${offsetLeft + Math.min(1, Math.max(0, share)) * offsetWidth}px`;
}
