// Drawing of pictures and arrays on canvases, in the page's own colours.

let colours = {};

function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["ink", "faint", "rule", "sunk", "panel", "blue", "vermillion", "purple", "green"]) {
    colours[name] = style.getPropertyValue(`--${name}`).trim();
  }
}
readColours();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", readColours);

const colour = (name) => colours[name];

// Pixels of an RGB array, as an ImageData; `at` is the index of the first number.
export function pixels(data, width, height, at = 0) {
  const image = new ImageData(width, height);
  const out = image.data;
  for (let from = at, to = 0; to < out.length; to += 4) {
    out[to] = data[from++];
    out[to + 1] = data[from++];
    out[to + 2] = data[from++];
    out[to + 3] = 255;
  }
  return image;
}

export function drawFrame(canvas, { data, shape }) {
  canvas.getContext("2d").putImageData(pixels(data, shape[1], shape[0]), 0, 0);
}

// The scene, however it is encoded. Small pictures are enlarged by the browser, with sharp edges.
export async function drawScene(canvas, { form, data, shape }) {
  const picture = form === "jpeg"
    ? await createImageBitmap(new Blob([data], { type: "image/jpeg" }))
    : await createImageBitmap(pixels(data, shape[1], shape[0]));
  if (canvas.width !== picture.width || canvas.height !== picture.height) {
    canvas.width = picture.width;
    canvas.height = picture.height;
    canvas.classList.toggle("pixels", picture.width <= 256);
    canvas.style.aspectRatio = `${picture.width} / ${picture.height}`;
  }
  canvas.getContext("2d").drawImage(picture, 0, 0);
  picture.close();
}

// A canvas as sharp as the screen: returns its context, and its size in CSS pixels.
function sharp(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas, scale = devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

const LARGEST_Z = 3; // z is about normal: almost all of it lies within

export function drawBars(canvas, values) {
  const { context, width, height } = sharp(canvas);
  const each = width / values.length, middle = height / 2;
  values.forEach((value, index) => {
    const tall = Math.max(-1, Math.min(1, value / LARGEST_Z)) * (middle - 2);
    context.fillStyle = colour(value < 0 ? "blue" : "vermillion");
    context.fillRect(index * each + 1, middle - Math.max(tall, 0), Math.max(1, each - 2), Math.abs(tall));
  });
  context.fillStyle = colour("faint");
  context.fillRect(0, middle, width, 1);
}

export function drawStrip(canvas, values) {
  const { context, width, height } = sharp(canvas);
  const rows = values.length > 128 ? 2 : 1, columns = Math.ceil(values.length / rows);
  values.forEach((value, index) => {
    context.globalAlpha = Math.min(1, Math.abs(value));
    context.fillStyle = colour(value < 0 ? "blue" : "vermillion");
    const x = index % columns, y = Math.floor(index / columns);
    context.fillRect((x * width) / columns, (y * height) / rows, width / columns + 0.5, height / rows);
  });
  context.globalAlpha = 1;
}

const tile = document.createElement("canvas");
tile.width = tile.height = 64;

// The decoded future: a row for each sample, and one that glows where the samples differ.
export function drawAhead(canvas, frames, apart, steps) {
  const [rows, columns] = frames.shape, gap = 4, left = 56, top = 20, size = 64 * 64 * 3;
  const side = (canvas.clientWidth - left - gap * (columns - 1)) / columns;
  canvas.style.height = `${top + (rows + 1) * (side + gap) - gap}px`;
  const { context } = sharp(canvas);
  context.imageSmoothingEnabled = false;
  context.fillStyle = colour("faint");
  context.font = "12px system-ui, sans-serif";
  context.textBaseline = "middle";
  for (let row = 0; row <= rows; row++) {
    const y = top + row * (side + gap);
    context.textAlign = "left";
    context.fillText(row < rows ? `dream ${row + 1}` : "apart", 0, y + side / 2);
    for (let column = 0; column < columns; column++) {
      const x = left + column * (side + gap), at = (row * columns + column) * size;
      const image = row < rows ? pixels(frames.data, 64, 64, at) : pixels(apart.data, 64, 64, column * size);
      tile.getContext("2d").putImageData(image, 0, 0);
      context.drawImage(tile, x, y, side, side);
      if (row === 0) {
        context.textAlign = "center";
        context.fillText(`+${steps[column]}`, x + side / 2, top / 2 - 1);
      }
    }
  }
}

export function drawSpread(canvas, spread, ends) {
  const { context, width, height } = sharp(canvas);
  const largest = Math.max(1, ...spread), left = 26, bottom = height - 16;
  const x = (step) => left + (step / (spread.length - 1)) * (width - left - 4);
  const y = (value, most) => bottom - (value / most) * (bottom - 6);
  context.font = "11px system-ui, sans-serif";
  context.fillStyle = context.strokeStyle = colour("faint");
  context.textAlign = "right";
  context.fillText(largest.toFixed(1), left - 4, 12);
  context.fillText("0", left - 4, bottom);
  context.textAlign = "left";
  context.fillText("+1", left, height - 3);
  context.textAlign = "right";
  context.fillText(`+${spread.length} steps`, width - 4, height - 3);
  context.fillStyle = colour("rule");
  context.fillRect(left, bottom, width - left, 1);
  const line = (values, most, name) => {
    context.strokeStyle = colour(name);
    context.lineWidth = 2;
    context.beginPath();
    values.forEach((value, step) => context.lineTo(x(step), y(value, most)));
    context.stroke();
  };
  line(spread, largest, "purple");
  if (ends) line(ends, 1, "vermillion");
}
