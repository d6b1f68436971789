// Runs the network over a picture in tiles, apart from the page, which stays responsive and can end the work.
import { bicubicRows, shrink } from "./bicubic.js";
import { psnr } from "./psnr.js";
import { spans, weights } from "./tiles.js";

const TILE = 128;
const OVERLAP = 32;
const PROBE = 48; // side of the tile by which the time is estimated
// The second also holds kernels for the graphics card and is twice as large.
const ENGINES = {
  wasm: ["ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"],
  webgpu: ["ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"],
};

// Threads need memory that is shared, which browsers give to pages with certain headers only; most hosts do not send them.
const THREADS = self.crossOriginIsolated ? Math.min(8, navigator.hardwareConcurrency || 1) : 1;

let opened = null; // { provider, file, session, ort }, kept for the next picture

const say = (type, told = {}, transfer = []) => self.postMessage({ type, ...told }, transfer);

class Missing extends Error {}

async function fetched(file, what) {
  let response;
  try {
    response = await fetch(new URL(file, import.meta.url));
  } catch (error) {
    throw new Missing(`${what} could not be loaded: ${error.message}.`);
  }
  if (!response.ok) throw new Missing(`${what} could not be loaded: the server answered ${response.status} for ${file}.`);
  const chunks = [];
  let size = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    chunks.push(value);
    size += value.length;
    say("loading", { what, bytes: size });
  }
  return new Uint8Array(await new Blob(chunks).arrayBuffer());
}

async function open(provider, file) {
  if (opened?.provider === provider && opened.file === file) return opened;
  const [module, binary] = ENGINES[provider];
  let ort = opened?.provider === provider ? opened.ort : null;
  const wasm = ort ? null : await fetched(`engine/${binary}`, "The engine");
  const model = await fetched(file, "The network");
  say("preparing");
  if (!ort) {
    ort = await import(new URL(`engine/${module}`, import.meta.url));
    ort.env.wasm.wasmBinary = wasm;
    ort.env.wasm.numThreads = THREADS;
    ort.env.logLevel = "error";
  }
  await opened?.session.release();
  opened = null;
  const session = await ort.InferenceSession.create(model, { executionProviders: [provider], logSeverityLevel: 3 });
  opened = { provider, file, session, ort };
  return opened;
}

/** The network's result for one tile, three planes between 0 and 1. */
async function enlarge({ session, ort }, { pixels, width }, [top, bottom], [left, right]) {
  const [height, across] = [bottom - top, right - left];
  const planes = new Float32Array(3 * height * across);
  for (let c = 0, at = 0; c < 3; c++) {
    for (let y = top; y < bottom; y++) {
      for (let x = left; x < right; x++) planes[at++] = pixels[4 * (y * width + x) + c] / 255;
    }
  }
  const input = new ort.Tensor("float32", planes, [1, 3, height, across]);
  const { output } = await session.run({ input });
  const result = await output.getData();
  input.dispose();
  output.dispose();
  // One number tells whether any is NaN or infinite: drivers of graphics cards have returned such.
  if (!Number.isFinite(result.reduce((sum, value) => sum + value, 0))) throw new Error("the result is not finite");
  return result;
}

function canvas(width, height) {
  const made = new OffscreenCanvas(width, height);
  const context = made.getContext("2d", { alpha: false, willReadFrequently: true });
  if (!context) throw new Error(`this browser has no canvas of ${width} × ${height} pixels`);
  return [made, context];
}

/** Seconds that the whole picture will take, from one small tile; nothing for pictures that are as small. */
async function estimate(engine, picture, pixels) {
  if (picture.width < PROBE || picture.height < PROBE) return undefined;
  const corner = [0, PROBE];
  await enlarge(engine, picture, corner, corner); // the first run also prepares kernels
  const began = performance.now();
  await enlarge(engine, picture, corner, corner);
  return ((performance.now() - began) / 1000) * (pixels / PROBE ** 2);
}

/** Tiles row by row: only one row of them is held in floating point. */
async function run(engine, picture, scale) {
  const { width, height } = picture;
  const wide = width * scale;
  const [rows, columns] = [height, width].map((length) => spans(length, TILE, OVERLAP));
  const [rowWeights, columnWeights] = [rows, columns].map((list) => weights(list, OVERLAP, scale));
  const [result, context] = canvas(wide, height * scale);
  const [tall, broad] = [rows, columns].map((list) => list.reduce((sum, [start, end]) => sum + end - start, 0));
  const seconds = await estimate(engine, picture, tall * broad);
  if (seconds !== undefined) say("estimate", { seconds });
  const total = rows.length * columns.length;
  let band = new Float32Array(3 * wide * (rows[0][1] - rows[0][0]) * scale);
  let done = 0;
  for (const [r, row] of rows.entries()) {
    for (const [c, column] of columns.entries()) {
      const share = await enlarge(engine, picture, row, column);
      const across = (column[1] - column[0]) * scale;
      const left = column[0] * scale;
      for (let plane = 0, at = 0; plane < 3; plane++) {
        for (const [y, weight] of rowWeights[r].entries()) {
          const to = (plane * rowWeights[r].length + y) * wide + left;
          for (let x = 0; x < across; x++) band[to + x] += share[at++] * weight * columnWeights[c][x];
        }
      }
      done += 1;
      say("tile", { done, total });
    }
    // The next row of tiles adds to what it shares with this one; what is above is final.
    const stands = (row[1] - row[0]) * scale;
    const final = ((rows[r + 1]?.[0] ?? row[1]) - row[0]) * scale;
    const strip = new ImageData(wide, final);
    const plane = stands * wide;
    for (let i = 0, end = final * wide; i < end; i++) {
      for (let c = 0; c < 3; c++) strip.data[4 * i + c] = 255 * band[c * plane + i]; // rounds and clamps
      strip.data[4 * i + 3] = 255;
    }
    context.putImageData(strip, 0, row[0] * scale);
    const rest = new Float32Array(band.length);
    for (let c = 0; c < 3; c++) rest.set(band.subarray(c * plane + final * wide, (c + 1) * plane), c * plane);
    band = rest;
  }
  return result;
}

function bicubic(picture, scale) {
  const [result, context] = canvas(picture.width * scale, picture.height * scale);
  for (const [top, rows] of bicubicRows(picture, scale)) {
    context.putImageData(new ImageData(rows, picture.width * scale), 0, top);
  }
  return result;
}

const pixelsOf = (canvas) => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;

/** Enlarge a picture; with `restore`, shrink it first, and tell how near to it the result comes. */
async function work({ pixels, width, height, provider, network: { file, scale }, restore }) {
  const given = { pixels: new Uint8ClampedArray(pixels), width, height };
  const picture = restore ? shrink(given, scale) : given;
  let result;
  const enlargeBy = async () => {
    const engine = await open(provider, file);
    say("started", { provider, threads: THREADS, width: picture.width, height: picture.height });
    result = await run(engine, picture, scale);
  };
  try {
    await enlargeBy();
  } catch (error) {
    if (provider === "wasm" || error instanceof Missing) throw error;
    opened = null;
    say("fallback", { why: error.message });
    provider = "wasm";
    await enlargeBy();
  }
  say("writing");
  const enlarged = bicubic(picture, scale);
  const scores = restore && [result, enlarged].map((each) => psnr(pixelsOf(each), each.width, given, scale));
  const png = await result.convertToBlob({ type: "image/png" });
  const before = enlarged.transferToImageBitmap();
  say("done", { png, before, provider, scores }, [before]);
}

self.addEventListener("message", ({ data }) => {
  work(data).catch((error) => say("failed", { message: error?.message ?? String(error), missing: error instanceof Missing }));
});
