// Runs the network over a picture in tiles, apart from the page, which stays responsive and can end the work.
import { bicubicRows } from "./bicubic.js";
import { spans, weights } from "./tiles.js";

const SCALE = 4;
const TILE = 128;
const OVERLAP = 32;
// The second also holds kernels for the graphics card and is twice as large.
const ENGINES = {
  wasm: ["ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"],
  webgpu: ["ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"],
};

let opened = null; // { provider, session, ort }, kept for the next picture

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

async function open(provider) {
  if (opened?.provider === provider) return opened;
  const [module, binary] = ENGINES[provider];
  const wasm = await fetched(`engine/${binary}`, "The engine");
  const model = await fetched("mren_x4.onnx", "The network");
  say("preparing");
  const ort = await import(new URL(`engine/${module}`, import.meta.url));
  ort.env.wasm.wasmBinary = wasm;
  ort.env.wasm.numThreads = 1; // more need headers that static hosts do not send
  ort.env.logLevel = "error";
  const session = await ort.InferenceSession.create(model, { executionProviders: [provider], logSeverityLevel: 3 });
  opened = { provider, session, ort };
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

/** Tiles row by row: only one row of them is held in floating point. */
async function run(engine, picture) {
  const { width, height } = picture;
  const wide = width * SCALE;
  const [rows, columns] = [height, width].map((length) => spans(length, TILE, OVERLAP));
  const [rowWeights, columnWeights] = [rows, columns].map((list) => weights(list, OVERLAP, SCALE));
  const [result, context] = canvas(wide, height * SCALE);
  const total = rows.length * columns.length;
  let band = new Float32Array(3 * wide * (rows[0][1] - rows[0][0]) * SCALE);
  let done = 0;
  for (const [r, row] of rows.entries()) {
    for (const [c, column] of columns.entries()) {
      const share = await enlarge(engine, picture, row, column);
      const across = (column[1] - column[0]) * SCALE;
      const left = column[0] * SCALE;
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
    const stands = (row[1] - row[0]) * SCALE;
    const final = ((rows[r + 1]?.[0] ?? row[1]) - row[0]) * SCALE;
    const strip = new ImageData(wide, final);
    const plane = stands * wide;
    for (let i = 0, end = final * wide; i < end; i++) {
      for (let c = 0; c < 3; c++) strip.data[4 * i + c] = 255 * band[c * plane + i]; // rounds and clamps
      strip.data[4 * i + 3] = 255;
    }
    context.putImageData(strip, 0, row[0] * SCALE);
    const rest = new Float32Array(band.length);
    for (let c = 0; c < 3; c++) rest.set(band.subarray(c * plane + final * wide, (c + 1) * plane), c * plane);
    band = rest;
  }
  return result;
}

function bicubic(picture) {
  const [result, context] = canvas(picture.width * SCALE, picture.height * SCALE);
  for (const [top, rows] of bicubicRows(picture, SCALE)) {
    context.putImageData(new ImageData(rows, picture.width * SCALE), 0, top);
  }
  return result.transferToImageBitmap();
}

async function work({ pixels, width, height, provider }) {
  const picture = { pixels: new Uint8ClampedArray(pixels), width, height };
  let result;
  try {
    const engine = await open(provider);
    say("started", { provider });
    result = await run(engine, picture);
  } catch (error) {
    if (provider === "wasm" || error instanceof Missing) throw error;
    opened = null;
    say("fallback", { why: error.message });
    provider = "wasm";
    const engine = await open(provider);
    say("started", { provider });
    result = await run(engine, picture);
  }
  say("writing");
  const png = await result.convertToBlob({ type: "image/png" });
  const before = bicubic(picture);
  say("done", { png, before, provider }, [before]);
}

self.addEventListener("message", ({ data }) => {
  work(data).catch((error) => say("failed", { message: error?.message ?? String(error), missing: error instanceof Missing }));
});
