// A log-mel spectrogram to look at. The student does not see it: it takes samples.

import { RATE } from "./audio.js";

export const BANDS = 64;
export const HOP = 160; // 10 ms
const WIDTH = 400; // 25 ms
const SIZE = 512; // of the Fourier transform

const window_ = Float32Array.from({ length: WIDTH }, (_, n) => 0.5 - 0.5 * Math.cos((2 * Math.PI * n) / WIDTH));
const cosines = Float32Array.from({ length: SIZE / 2 }, (_, n) => Math.cos((2 * Math.PI * n) / SIZE));
const sines = Float32Array.from({ length: SIZE / 2 }, (_, n) => -Math.sin((2 * Math.PI * n) / SIZE));

/** Fourier transform of `real` and `imaginary` in place, by halves (radix 2); the order of samples is bit-reversed. */
function transform(real, imaginary) {
  for (let from = 1, to = 0; from < SIZE; from++) {
    let bit = SIZE >> 1;
    for (; to & bit; bit >>= 1) to ^= bit;
    to ^= bit;
    if (from < to) [real[from], real[to]] = [real[to], real[from]];
  }
  for (let half = 1; half < SIZE; half *= 2) {
    for (let first = 0; first < SIZE; first += 2 * half) {
      for (let k = 0; k < half; k++) {
        const [a, b, turn] = [first + k, first + k + half, (k * SIZE) / (2 * half)];
        const x = real[b] * cosines[turn] - imaginary[b] * sines[turn];
        const y = real[b] * sines[turn] + imaginary[b] * cosines[turn];
        [real[b], imaginary[b]] = [real[a] - x, imaginary[a] - y];
        [real[a], imaginary[a]] = [real[a] + x, imaginary[a] + y];
      }
    }
  }
}

/** The Fourier bins at which each band begins, peaks and ends: BANDS + 2 points, evenly spaced in mel. */
const mel = (hertz) => 2595 * Math.log10(1 + hertz / 700);
const edges = Array.from({ length: BANDS + 2 }, (_, n) => {
  const hertz = 700 * (10 ** ((n * mel(RATE / 2)) / (BANDS + 1) / 2595) - 1);
  return (hertz * SIZE) / RATE;
});

/** Decibels, {values: (column, band) flat, columns}. */
export function logMel(samples) {
  const columns = Math.max(0, Math.floor((samples.length - WIDTH) / HOP) + 1);
  const values = new Float32Array(columns * BANDS);
  const [real, imaginary] = [new Float32Array(SIZE), new Float32Array(SIZE)];
  for (let column = 0; column < columns; column++) {
    real.fill(0);
    imaginary.fill(0);
    for (let n = 0; n < WIDTH; n++) real[n] = samples[column * HOP + n] * window_[n];
    transform(real, imaginary);
    for (let band = 0; band < BANDS; band++) {
      const [low, peak, high] = edges.slice(band, band + 3);
      let power = 0;
      for (let bin = Math.ceil(low); bin < high; bin++) {
        const weight = bin < peak ? (bin - low) / (peak - low) : (high - bin) / (high - peak);
        power += weight * (real[bin] ** 2 + imaginary[bin] ** 2);
      }
      values[column * BANDS + band] = 10 * Math.log10(power + 1e-7);
    }
  }
  return { values, columns };
}
