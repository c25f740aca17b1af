// Discrete units: the centroids that distiller/units.py or distiller/targets.py fitted, and the nearest to each frame.

import { layerOf } from "./model.js";

export const SETTINGS = "targets.json";
export const CODEBOOK = "codebook.safetensors";

/** The tensors of a safetensors file that holds float32 ones: {name: {shape, values}}. */
function tensors(bytes) {
  const length = Number(new DataView(bytes).getBigUint64(0, true));
  const { __metadata__, ...header } = JSON.parse(new TextDecoder().decode(bytes.slice(8, 8 + length)));
  const read = ([name, { shape, data_offsets }]) => {
    const [start, end] = data_offsets.map((offset) => 8 + length + offset);
    return [name, { shape, values: new Float32Array(bytes.slice(start, end)) }];
  };
  return Object.fromEntries(Object.entries(header).map(read));
}

export class Units {
  /** The text of targets.json and the bytes of codebook.safetensors. */
  constructor(settings, codebook) {
    try {
      this.settings = JSON.parse(settings);
      this.codebook = tensors(codebook);
      this.layers = this.settings.layers.map((layer) => [layer, this.codebook[`layer.${layer}`].shape]);
    } catch {
      throw new Error(`The units folder is damaged; fit the units again.`);
    }
  }

  /** Throws if the units were fitted on another model, or on states that its file does not have. */
  check(model) {
    const { teacher, layer_zero } = this.settings;
    const named = (count) => `${count.toLocaleString("en")} parameters`;
    if (teacher.parameters !== model.parameters)
      throw new Error(
        `The units were fitted on a model with ${named(teacher.parameters)}, but this one has ${named(model.parameters)}.`,
      );
    if (layer_zero === "feature_projection" && this.layers.some(([layer]) => layer === 0))
      throw new Error("The units are of the feature projection, which is not in an .onnx file; fit them on a layer.");
  }

  /** The units of what `Model.run` returned, by stream: [{layer, stage, units: (frame,)}]. */
  of(result) {
    const streams = [];
    for (const [layer, [stages, count, channels]] of this.layers) {
      const residual = normalised(layerOf(result, layer), channels, this.settings.norm);
      const { values } = this.codebook[`layer.${layer}`];
      for (let stage = 0; stage < stages; stage++) {
        const centroids = values.subarray(stage * count * channels, (stage + 1) * count * channels);
        streams.push({ layer, stage, units: quantise(residual, centroids, channels) });
      }
    }
    return streams;
  }
}

/** A copy of frames (frame, channel), flat; with "frame" each at mean 0 and variance 1, as torch's layer norm. */
function normalised(states, channels, norm) {
  const out = Float32Array.from(states);
  if (norm !== "frame") return out;
  for (let at = 0; at < out.length; at += channels) {
    const row = out.subarray(at, at + channels);
    const mean = row.reduce((sum, value) => sum + value, 0) / channels;
    const variance = row.reduce((sum, value) => sum + (value - mean) ** 2, 0) / channels;
    row.forEach((value, channel) => (row[channel] = (value - mean) / Math.sqrt(variance + 1e-5)));
  }
  return out;
}

/** The nearest centroid of each frame, (frame,); takes it away from the frames, for the next stage. */
function quantise(frames, centroids, channels) {
  const units = [];
  for (let at = 0; at < frames.length; at += channels) {
    let [best, least] = [0, Infinity];
    for (let from = 0; from < centroids.length; from += channels) {
      let distance = 0;
      for (let channel = 0; channel < channels && distance < least; channel++)
        distance += (frames[at + channel] - centroids[from + channel]) ** 2;
      if (distance < least) [best, least] = [from, distance];
    }
    for (let channel = 0; channel < channels; channel++) frames[at + channel] -= centroids[best + channel];
    units.push(best / channels);
  }
  return units;
}
