// PSNR as in the papers: on the luma of BT.601 in studio range, without a border of as many pixels as the scale.

const luma = (pixels, at) => 16 + (65.481 * pixels[at] + 128.553 * pixels[at + 1] + 24.966 * pixels[at + 2]) / 255;

/** PSNR in dB of a result against the picture that it restores, which may have further rows and columns. */
export function psnr(result, width, original, border) {
  const height = result.length / (4 * width);
  let sum = 0;
  for (let y = border; y < height - border; y++) {
    for (let x = border; x < width - border; x++) {
      sum += (luma(result, 4 * (y * width + x)) - luma(original.pixels, 4 * (y * original.width + x))) ** 2;
    }
  }
  const count = (height - 2 * border) * (width - 2 * border);
  return 10 * Math.log10((255 ** 2 * count) / sum);
}
