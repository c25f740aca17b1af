// Numbers as colours: pictures of matrices, and strips of units.

// anchors of colour ramps, from the lowest value to the highest
export const RISING = ["#0b0d14", "#1d2f6f", "#1f7a8c", "#7fc97f", "#fdf6b2"];
export const SIGNED = ["#7cc7ff", "#1f5fbf", "#0b0d14", "#b5541c", "#ffc78a"]; // 0 is dark

const SHADES = 256;
const tables = new Map();

/** A ramp as 256 colours, packed as ImageData has them. */
function table(ramp) {
  if (!tables.has(ramp)) {
    const anchors = ramp.map((colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)));
    const shades = Uint32Array.from({ length: SHADES }, (_, shade) => {
      const place = (shade / (SHADES - 1)) * (anchors.length - 1);
      const index = Math.min(Math.floor(place), anchors.length - 2);
      const mixed = anchors[index].map((from, part) => from + (place - index) * (anchors[index + 1][part] - from));
      return mixed.reduce((packed, part, position) => packed | (Math.round(part) << (8 * position)), 0xff << 24);
    });
    tables.set(ramp, shades);
  }
  return tables.get(ramp);
}

/**
 * A matrix on a canvas, at the right end of `room` columns.
 * `at(row, column)` is its value, row 0 on top; `low` and `high` are the ends of the colour ramp.
 */
export function matrix(canvas, { rows, columns, room = columns, height = rows, at, low, high, ramp }) {
  Object.assign(canvas, { width: room, height }); // which also clears it
  if (!rows || !columns) return;
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  const pixels = new Uint32Array(image.data.buffer);
  const shades = table(ramp);
  const scale = (SHADES - 1) / (high - low || 1);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const shade = (at(row, column) - low) * scale;
      pixels[row * columns + column] = shades[Math.max(0, Math.min(SHADES - 1, Math.round(shade)))];
    }
  }
  context.putImageData(image, room - columns, height - rows);
}

/** Units as coloured blocks at the right end of `room` frames; a unit has the same colour everywhere. */
export function strip(canvas, units, room) {
  Object.assign(canvas, { width: room, height: 1 });
  const context = canvas.getContext("2d");
  units.forEach((unit, frame) => {
    context.fillStyle = `hsl(${(unit * 137.5) % 360} ${55 + ((unit * 7) % 3) * 15}% ${42 + ((unit * 5) % 4) * 10}%)`;
    context.fillRect(room - units.length + frame, 0, 1, 1);
  });
}

/** The CSS background of a colour key. */
export const gradient = (ramp) => `linear-gradient(to right, ${ramp.join(", ")})`;

/** The values below which these shares of all values lie, from every few hundredth value. */
export function quantiles(values, ...shares) {
  const stride = Math.max(1, Math.floor(values.length / 4000)) | 1; // odd: it visits all rows and columns
  const sample = values.filter((_, index) => index % stride === 0).sort();
  return shares.map((share) => sample[Math.round(share * (sample.length - 1))] ?? 0);
}
