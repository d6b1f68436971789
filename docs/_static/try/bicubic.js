// Bicubic enlargement and reduction by a whole factor, with the kernel of the papers (a = -0.5), as in MATLAB.

function kernel(x) {
  const t = Math.abs(x);
  if (t <= 1) return 1.5 * t ** 3 - 2.5 * t ** 2 + 1;
  return t < 2 ? -0.5 * t ** 3 + 2.5 * t ** 2 - 4 * t + 2 : 0;
}

/** For each place within an enlarged pixel: the first of four pixels that it is made of, and their weights. */
function phases(scale) {
  return Array.from({ length: scale }, (_, place) => {
    const centre = (place + 0.5) / scale - 0.5;
    const first = Math.floor(centre) - 1;
    return { first, taps: [0, 1, 2, 3].map((k) => kernel(centre - first - k)) };
  });
}

// Outside the image it is mirrored, its last pixel included.
const inside = (i, size) => {
  const folded = (((i % (2 * size)) + 2 * size) % (2 * size));
  return folded < size ? folded : 2 * size - 1 - folded;
};

/** Yields the enlarged picture as [top, rows of RGBA], `scale` rows at a time. */
export function* bicubicRows({ pixels, width, height }, scale) {
  const all = phases(scale);
  const cache = new Map();
  const wide = (y) => {
    const row = inside(y, height);
    if (cache.has(row)) return cache.get(row);
    const made = new Float32Array(width * scale * 3);
    for (let x = 0, at = 0; x < width; x++) {
      for (const { first, taps } of all) {
        const from = taps.map((_, k) => 4 * (row * width + inside(x + first + k, width)));
        for (let c = 0; c < 3; c++) made[at++] = taps.reduce((sum, tap, k) => sum + tap * pixels[from[k] + c], 0);
      }
    }
    cache.set(row, made);
    if (cache.size > 8) cache.delete(cache.keys().next().value);
    return made;
  };
  for (let y = 0; y < height; y++) {
    const rows = new Uint8ClampedArray(width * scale * scale * 4).fill(255);
    for (const [place, { first, taps }] of all.entries()) {
      const [a, b, c, d] = taps.map((_, k) => wide(y + first + k));
      for (let i = 0, at = place * width * scale * 4; i < a.length; at++) {
        for (let k = 0; k < 3; k++, i++, at++) rows[at] = taps[0] * a[i] + taps[1] * b[i] + taps[2] * c[i] + taps[3] * d[i];
      }
    }
    yield [y * scale, rows];
  }
}

/** The picture shrunk by a whole factor, with antialiasing; rows and columns that do not fill a pixel are cut off. */
export function shrink({ pixels, width, height }, scale) {
  const [across, down] = [width, height].map((side) => Math.floor(side / scale));
  const first = (scale >> 1) - 2 * scale;
  const taps = Array.from({ length: 4 * scale }, (_, k) => kernel((first + k + 0.5 - scale / 2) / scale) / scale);
  // One axis after the other; `stride` is the distance of neighbours along the axis.
  const along = (from, size, length, stride, put) => {
    for (let at = 0; at < length; at++) {
      const sums = [0, 0, 0];
      for (const [k, tap] of taps.entries()) {
        const i = inside(at * scale + first + k, size) * stride;
        for (let c = 0; c < 3; c++) sums[c] += tap * from[i + c];
      }
      put(at, sums);
    }
  };
  const narrow = new Float32Array(across * height * 4);
  for (let y = 0; y < height; y++) {
    along(pixels.subarray(4 * y * width), across * scale, across, 4, (x, sums) => narrow.set(sums, 4 * (y * across + x)));
  }
  const small = new Uint8ClampedArray(across * down * 4).fill(255);
  for (let x = 0; x < across; x++) {
    along(narrow.subarray(4 * x), down * scale, down, 4 * across, (y, sums) => small.set(sums, 4 * (y * across + x)));
  }
  return { pixels: small, width: across, height: down };
}
