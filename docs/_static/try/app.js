// The page "Try it in the browser": takes a picture, hands it to the worker, shows what comes back.

const SAMPLE = "sample.png";
// The result of ×4 has 16 times as many pixels; beyond 16384 a side browsers have no canvas.
const MOST_PIXELS = 4e6;
const LONGEST_SIDE = 4096;

const root = document.querySelector(".try");
const part = (name) => root.querySelector(`[data-part="${name}"]`);
const parts = Object.fromEntries(
  ["unstarted", "app", "drop", "file", "sample", "network", "restore", "gpu", "gpu-box", "status", "choice", "why", "shrink", "crop", "dismiss",
    "work", "progress", "time", "cancel", "silent", "result", "comparison", "download"].map((name) => [name, part(name)]),
);
// A worker that has run out of memory may end without a word. A test shortens this.
const patience = () => Number(root.dataset.patience) * 1000;

let worker = null;
let watch = null;
let name = "picture";
let address = null;
let networks = []; // { title, file, scale }, the default first
let latest = 0; // number of the picture that counts; one that is still being read may be overtaken

function show(...visible) {
  for (const section of ["choice", "work", "silent", "result"]) parts[section].hidden = !visible.includes(section);
}

function tell(text, kind = "") {
  parts.status.textContent = text;
  parts.status.dataset.kind = kind;
}

const fail = (text) => {
  show();
  tell(text, "error");
};

const size = (width, height) => `${width} × ${height}`;
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
const decibels = (value) => `${value.toFixed(2)} dB`;
const duration = (seconds) =>
  seconds < 90 ? `${Math.max(1, Math.round(seconds))} s` : `${Math.round(seconds / 60)} min`;

function stop() {
  worker?.terminate();
  worker = null;
  clearTimeout(watch);
}

/** Whether the browser offers the graphics card here, and not only knows the word. */
async function graphicsCard() {
  try {
    return Boolean(await navigator.gpu?.requestAdapter());
  } catch {
    return false;
  }
}

async function take(blob) {
  const number = ++latest;
  if (worker?.busy) stop();
  show();
  tell("Reading the picture …");
  name = (blob.name ?? "picture.png").replace(/\.[^.]*$/, "");
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { imageOrientation: "from-image" });
  } catch {
    const what = blob.name ? `“${blob.name}”` : "This";
    if (number === latest) {
      fail(`${what} is not a picture that this browser can read, or one too large for it. Try JPEG, PNG, WebP or AVIF.`);
    }
    return;
  }
  if (number !== latest) return;
  const { width, height } = bitmap;
  if (width * height <= MOST_PIXELS && Math.max(width, height) <= LONGEST_SIDE) return begin(bitmap, {});
  offer(bitmap);
}

/** A picture beyond the limit: explain, and let the visitor choose what of it is upscaled. */
function offer(bitmap) {
  const { width, height } = bitmap;
  const factor = Math.min(1, Math.sqrt(MOST_PIXELS / (width * height)), LONGEST_SIDE / Math.max(width, height));
  const small = [width, height].map((side) => Math.max(1, Math.floor(side * factor)));
  const side = Math.floor(Math.sqrt(MOST_PIXELS));
  const cut = width * height <= MOST_PIXELS ? [width, height] : [width, height].map((length) => Math.min(length, side));
  const cropped = cut.map((length) => Math.min(length, LONGEST_SIDE));
  parts.why.textContent =
    `This picture has ${size(width, height)} pixels, ${((width * height) / 1e6).toFixed(1)} megapixels. Here the limit is ` +
    `${MOST_PIXELS / 1e6} megapixels and ${LONGEST_SIDE} pixels a side: the result has up to 16 times as many, and ` +
    "beyond that many browsers run out of memory. What should be upscaled?";
  parts.shrink.textContent = `All of it, shrunk to ${size(...small)} first`;
  parts.crop.textContent = `Its middle, ${size(...cropped)}, as it is`;
  parts.shrink.onclick = () => begin(bitmap, { to: small });
  parts.crop.onclick = () => begin(bitmap, { cut: cropped });
  show("choice");
  tell("The picture is too large to be upscaled as a whole. Choose below.", "error");
}

/** Draw what is to be upscaled over white, in sRGB, and send its pixels to the worker. */
function begin(bitmap, { to, cut }) {
  const [width, height] = to ?? cut ?? [bitmap.width, bitmap.height];
  const [across, down] = to ? [bitmap.width, bitmap.height] : [width, height];
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  if (!context) return fail(`This browser has no memory for ${size(width, height)} pixels. Try a smaller picture.`);
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  const [left, top] = [(bitmap.width - across) >> 1, (bitmap.height - down) >> 1];
  context.drawImage(bitmap, left, top, across, down, 0, 0, width, height);
  bitmap.close();
  start(width, height, context.getImageData(0, 0, width, height).data.buffer);
}

function start(width, height, pixels) {
  const network = networks[parts.network.selectedIndex];
  const restore = parts.restore.checked;
  if (restore && Math.min(width, height) < 4 * network.scale) {
    return fail(`A picture of ${size(width, height)} pixels is too small to be shrunk by ${network.scale} first.`);
  }
  show("work");
  parts.progress.removeAttribute("value");
  parts.time.textContent = "";
  tell(`Loading the engine for ${size(width, height)} pixels …`);
  let began = 0;
  let longest = 0;
  let heard = performance.now();
  const lost = (text) => {
    stop();
    fail(`${text} Choose the picture again to retry, or a smaller one.`);
  };
  const listen = () => {
    clearTimeout(watch);
    parts.silent.hidden = true;
    heard = performance.now();
    // Slow is not lost: the wait grows with the slowest tile so far.
    watch = setTimeout(() => {
      parts.silent.hidden = false;
      tell(`The worker has not been heard of for ${duration((performance.now() - heard) / 1000)}.`, "error");
    }, Math.max(patience(), 10 * longest));
  };
  const handlers = {
    loading: ({ what, bytes }) => (parts.time.textContent = `${what}: ${megabytes(bytes)}`),
    preparing: () => (parts.time.textContent = "Starting the engine …"),
    started: ({ provider, threads, width, height }) => {
      began = performance.now();
      const cores = threads === 1 ? "one thread" : `${threads} threads`;
      const where = provider === "webgpu" ? "on the graphics card (WebGPU)" : `on the processor (WebAssembly, ${cores})`;
      const [wide, tall] = [width, height].map((side) => network.scale * side);
      tell(`Upscaling ${size(width, height)} to ${size(wide, tall)} pixels ${where} …`);
      parts.time.textContent = "Estimating the time …";
      parts.progress.value = 0;
    },
    estimate: ({ seconds }) => (parts.time.textContent = `This will take about ${duration(seconds)}.`),
    fallback: ({ why }) => {
      tell("The graphics card did not manage; the processor goes on.");
      console.info(`WebGPU: ${why}`);
    },
    tile: ({ done, total }) => {
      longest = Math.max(longest, performance.now() - heard);
      const left = ((performance.now() - began) / done) * (total - done);
      parts.progress.value = done / total;
      parts.time.textContent = `Tile ${done} of ${total}${done < total ? `, about ${duration(left / 1000)} left` : ""}`;
    },
    writing: () => (parts.time.textContent = "Writing the PNG …"),
    failed: ({ message, missing }) => {
      if (missing) return lost(message);
      lost(`The worker gave up: ${message.replace(/\.?$/, ".")} Most often memory has run out.`);
    },
    done: (told) => finish(told, network, restore, (performance.now() - began) / 1000),
  };
  try {
    worker ??= new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  } catch (error) {
    return lost(`This browser started no worker: ${error.message}.`);
  }
  worker.onmessage = ({ data: { type, ...told } }) => {
    if (type !== "failed" && type !== "done") listen();
    handlers[type](told);
  };
  worker.onerror = (event) => {
    event.preventDefault?.();
    lost(`The worker was lost${event.message ? `: ${event.message}` : ""}. It could not be loaded or has crashed, perhaps for want of memory.`);
  };
  worker.onmessageerror = () => lost("The worker's answer could not be read.");
  worker.busy = true;
  listen();
  const provider = parts.gpu.checked ? "webgpu" : "wasm";
  worker.postMessage({ pixels, width, height, provider, network, restore }, [pixels]);
}

async function finish({ png, before, provider, scores }, { title, scale }, restore, seconds) {
  clearTimeout(watch);
  worker.busy = false;
  if (address) URL.revokeObjectURL(address);
  address = URL.createObjectURL(png);
  const canvas = Object.assign(document.createElement("canvas"), { width: before.width, height: before.height });
  canvas.role = "img";
  canvas.ariaLabel = "Your picture, upscaled by bicubic interpolation";
  const { width, height } = canvas;
  canvas.getContext("bitmaprenderer").transferFromImageBitmap(before);
  const image = new Image();
  image.alt = `Your picture, upscaled by ${title}`;
  image.src = address;
  const number = latest;
  await image.decode().catch(() => {}); // too large to show is not too large to download
  if (number !== latest) return;
  show("result"); // before it is filled: its size has to be known
  globalThis.beforeAfter(parts.comparison, { picture: canvas, label: "bicubic" }, { picture: image, label: title });
  Object.assign(parts.download, { href: address, download: `${name}_${restore ? "restored" : `x${scale}`}.png` });
  parts.download.textContent = `Download PNG, ${megabytes(png.size)}`;
  const where = provider === "webgpu" ? "WebGPU" : "WebAssembly";
  const [ours, bicubic] = scores || [];
  const compared = scores ? ` PSNR against your original: ${title} ${decibels(ours)}, bicubic ${decibels(bicubic)}.` : "";
  tell(`Done: ${size(width, height)} pixels in ${duration(seconds)} with ${where}.${compared}`, "done");
}

function cancel() {
  latest += 1;
  stop();
  show();
  tell("Cancelled. Choose another picture whenever you like.");
}

parts.file.addEventListener("change", () => {
  if (parts.file.files[0]) take(parts.file.files[0]);
  parts.file.value = ""; // the same file may be chosen again
});
parts.sample.addEventListener("click", async () => {
  const response = await fetch(new URL(SAMPLE, import.meta.url)).catch(() => null);
  if (response?.ok) take(new File([await response.blob()], SAMPLE));
  else fail("The sample could not be loaded.");
});
parts.cancel.addEventListener("click", cancel);
parts.dismiss.addEventListener("click", cancel);
part("end").addEventListener("click", cancel);

const files = (transfer) => [...transfer.files];
document.addEventListener("paste", (event) => {
  const [file] = files(event.clipboardData);
  if (!file) return;
  event.preventDefault();
  take(file);
});
// Anywhere on the page: a picture that misses the box would otherwise replace the page.
let depth = 0;
const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
const mark = () => parts.drop.classList.toggle("try-over", depth > 0);
document.addEventListener("dragenter", (event) => carriesFiles(event) && (depth++, mark()));
document.addEventListener("dragleave", (event) => carriesFiles(event) && (depth--, mark()));
document.addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
document.addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  depth = 0;
  mark();
  const [file] = files(event.dataTransfer);
  if (file) take(file);
});

networks = await fetch(new URL("networks.json", import.meta.url)).then((response) => response.json());
parts.network.append(...networks.map(({ title }) => new Option(title)));
if (await graphicsCard()) {
  parts["gpu-box"].hidden = false;
  parts.gpu.checked = true;
}
parts.unstarted.remove();
parts.app.hidden = false;
