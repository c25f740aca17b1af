// A layer's temporal Gram matrix: how much each frame resembles each other one. STaR's student learns the teacher's.

/**
 * Frames (frame, channel), flat, scaled as `objective.scaling` of a recipe names it: "none"; "unit": at length 1;
 * "centred": minus their mean.
 */
function scaled(states, frames, channels, scaling) {
  const out = Float32Array.from(states);
  if (scaling === "centred") {
    for (let channel = 0; channel < channels; channel++) {
      let sum = 0;
      for (let at = channel; at < out.length; at += channels) sum += out[at];
      for (let at = channel; at < out.length; at += channels) out[at] -= sum / frames;
    }
  } else if (scaling === "unit") {
    for (let frame = 0; frame < frames; frame++) {
      const row = out.subarray(frame * channels, (frame + 1) * channels);
      const length = Math.hypot(...row) || 1;
      row.forEach((value, channel) => (row[channel] = value / length));
    }
  }
  return out;
}

/** G = F Fᵀ of scaled frames: (frame, frame), flat. */
export function gram(states, frames, channels, scaling) {
  const rows = scaled(states, frames, channels, scaling);
  const products = new Float32Array(frames * frames);
  for (let a = 0; a < frames; a++) {
    for (let b = 0; b <= a; b++) {
      let sum = 0;
      for (let channel = 0; channel < channels; channel++)
        sum += rows[a * channels + channel] * rows[b * channels + channel];
      products[a * frames + b] = products[b * frames + a] = sum;
    }
  }
  return products;
}

/** Each channel at mean 0 and variance 1 over the frames: (frame, channel), flat. */
export function standardised(states, frames, channels) {
  const out = scaled(states, frames, channels, "centred");
  for (let channel = 0; channel < channels; channel++) {
    let square = 0;
    for (let at = channel; at < out.length; at += channels) square += out[at] ** 2;
    const deviation = Math.sqrt(square / frames) || 1;
    for (let at = channel; at < out.length; at += channels) out[at] /= deviation;
  }
  return out;
}
