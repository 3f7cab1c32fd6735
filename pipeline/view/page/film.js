// Pictures and films of the world, made in the browser: the scene, what V sees, and its reconstruction.

const SCENE = [720, 480], TILE = 240;

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export class Film {
  constructor(scene, tiles) {
    this.scene = scene;
    this.tiles = tiles;
    this.canvas = document.createElement("canvas");
    this.canvas.width = SCENE[0] + TILE;
    this.canvas.height = SCENE[1];
    this.recorder = null;
  }

  get recording() {
    return this.recorder !== null;
  }

  // Compose the present picture.
  draw() {
    const context = this.canvas.getContext("2d"), { width, height } = this.scene;
    const scale = Math.min(SCENE[0] / width, SCENE[1] / height);
    context.fillStyle = "#0b0d10";
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    context.imageSmoothingEnabled = width > 256;
    const left = (SCENE[0] - width * scale) / 2, top = (SCENE[1] - height * scale) / 2;
    context.drawImage(this.scene, left, top, width * scale, height * scale);
    context.imageSmoothingEnabled = false;
    this.tiles.forEach((tile, row) => context.drawImage(tile, SCENE[0], row * TILE, TILE, TILE));
  }

  photo(name) {
    this.draw();
    this.canvas.toBlob((blob) => save(blob, `${name}.png`));
  }

  start() {
    const parts = [];
    this.draw();
    const options = { mimeType: "video/webm", videoBitsPerSecond: 4_000_000 };
    this.recorder = new MediaRecorder(this.canvas.captureStream(30), options);
    this.recorder.ondataavailable = ({ data }) => parts.push(data);
    this.recorder.onstop = () => save(new Blob(parts, { type: "video/webm" }), `${this.name}.webm`);
    this.recorder.start();
  }

  stop(name) {
    this.name = name;
    this.recorder.stop();
    this.recorder = null;
  }
}
