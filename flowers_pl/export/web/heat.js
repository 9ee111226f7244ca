// Heat maps, as `explain` draws them.

function scaled(values) {
  const least = values.reduce((one, other) => Math.min(one, other));
  const range = values.reduce((one, other) => Math.max(one, other)) - least + 1e-7;
  return values.map((value) => (value - least) / range);
}

// Where bilinear interpolation takes each of `size` places from, among `count`: [lower, upper, share of the upper].
function steps(count, size) {
  return Array.from({ length: size }, (_, place) => {
    const from = Math.max(0, (place + 0.5) * count / size - 0.5);
    const lower = Math.min(Math.floor(from), count - 1);
    return [lower, Math.min(lower + 1, count - 1), from - lower];
  });
}

// Resize a map, height x width, to a square, scale it to reach from 0 to 1, and colour it: RGBA, size x size.
// `colours` is a table of 256 colours, six hexadecimal digits each.
export function heatColours(map, height, width, size, colours) {
  const values = scaled(map), rows = steps(height, size), columns = steps(width, size);
  const large = new Float32Array(size * size);
  rows.forEach(([upper, lower, down], y) => columns.forEach(([left, right, across], x) => {
    const mix = (row) => values[row * width + left] * (1 - across) + values[row * width + right] * across;
    large[y * size + x] = mix(upper) * (1 - down) + mix(lower) * down;
  }));
  const pixels = new Uint8ClampedArray(4 * size * size);
  scaled(large).forEach((value, place) => {
    const colour = parseInt(colours.substr(6 * Math.min(255, Math.floor(256 * value)), 6), 16);
    pixels.set([colour >> 16, (colour >> 8) & 255, colour & 255, 255], 4 * place);
  });
  return pixels;
}
