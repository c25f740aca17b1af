// An exported student, run by onnxruntime-web in a worker of its own, so that the page stays responsive.

import { properties } from "./onnx_file.js";

// The one place that says where onnxruntime-web comes from. `?ort=PATH`, on this page's own server, replaces it.
const RUNTIME = "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/ort.wasm.bundle.min.mjs";

/** onnxruntime-web, from `path` on this page's server if there is one. */
async function runtime(path) {
  const url = new URL(path ?? RUNTIME, location);
  if (path && url.origin !== location.origin) // it is code: a link must not bring its own
    throw new Error(`?ort= is ${path}, but it must be on this page's own server`);
  try {
    const ort = await import(url);
    ort.env.wasm.proxy = true;
    return ort;
  } catch {
    throw new Error(`onnxruntime-web could not be loaded from ${url}; README.md says how to serve it beside this page`);
  }
}

export class Model {
  /** Opens a file's bytes; `path` is that of a local onnxruntime-web, or null. */
  static async open(name, bytes, path) {
    let facts = {};
    try {
      facts = properties(bytes);
    } catch {
      throw new Error(`${name} is not an ONNX file`);
    }
    const ort = await runtime(path);
    let session;
    try {
      session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
    } catch (error) {
      throw new Error(`onnxruntime-web cannot open ${name}: ${error.message}`);
    }
    if (!facts.encoder || !session.outputNames.includes("hidden_states")) {
      await session.release();
      throw new Error(
        `${name} does not hold all hidden states (its outputs: ${session.outputNames.join(", ")}); ` +
          "export a student with --to onnx and without --states",
      );
    }
    return new Model(ort, session, JSON.parse(facts.encoder), Number(facts.parameters));
  }

  constructor(ort, session, config, parameters) {
    Object.assign(this, { ort, session, config, parameters });
    this.layers = config.attention_heads.length; // beside F^0
    const hop = config.mel_bins ? 160 : 1; // Whisper's spectrogram
    this.step = config.conv_layers.reduce((product, [, , stride]) => product * stride, hop); // samples per frame
    const receptive = config.conv_layers.reduceRight((n, [, kernel, stride]) => (n - 1) * stride + kernel, 1);
    this.shortest = (receptive + (config.frame_multiple ?? 1) * this.step) * hop; // samples, a little generous
  }

  /**
   * The states of samples at 16 kHz, as they are: the graph itself normalises or centres them where its encoder does.
   * Returns {states, layers, frames, channels, milliseconds}; states are F^0..F^L, (layer, frame, channel), flat.
   */
  async run(samples) {
    const { Tensor } = this.ort;
    const start = performance.now();
    const outputs = await this.session.run({
      waveforms: new Tensor("float32", samples.slice(), [1, samples.length]), // the worker takes it away
      lengths: new Tensor("int64", BigInt64Array.of(BigInt(samples.length)), [1]),
    });
    const milliseconds = performance.now() - start;
    const [layers, , frames, channels] = outputs.hidden_states.dims;
    return { states: outputs.hidden_states.data, layers, frames, channels, milliseconds };
  }

  close() {
    return this.session.release();
  }
}

/** F^layer of what `run` returned: (frame, channel), flat. */
export function layerOf({ states, frames, channels }, layer) {
  return states.subarray(layer * frames * channels, (layer + 1) * frames * channels);
}
