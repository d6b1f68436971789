// Where tiles lie and what they count, as in sc_blocks.tiling: in the outer thirds of an overlap only the tile that sees
// further counts, in the middle third one fades into the other.

/** First pixel of each tile along one axis, and the one after its last. The last tile is moved inwards, not shrunk. */
export function spans(length, tile, overlap) {
  if (length <= tile) return [[0, length]];
  const starts = [];
  for (let start = 0; start < length - tile; start += tile - overlap) starts.push(start);
  starts.push(length - tile);
  return starts.map((start) => [start, start + tile]);
}

/** What each tile along one axis counts at each of its result's pixels; at every pixel of the image the sum is 1. */
export function weights(list, overlap, scale) {
  const end = list.at(-1)[1];
  const third = Math.max((overlap * scale) / 3, 1e-6);
  const ramp = (distance) => Math.min(Math.max((distance - third) / third, 0), 1);
  const total = new Float64Array(end * scale);
  const all = list.map(([start, stop]) => {
    const size = (stop - start) * scale;
    return Float64Array.from({ length: size }, (_, i) => {
      const weight = (start > 0 ? ramp(i + 0.5) : 1) * (stop < end ? ramp(size - i - 0.5) : 1);
      total[start * scale + i] += weight;
      return weight;
    });
  });
  return all.map((one, i) => one.map((weight, k) => weight / total[list[i][0] * scale + k]));
}
