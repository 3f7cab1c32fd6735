// Pictures and films of the world, made in the browser: the scene, what V sees, and its reconstruction.

const SCENE = [720, 480], TILE = 240;
// What a browser may record, best first: H.264 in MP4 plays everywhere.
const KINDS = ["video/mp4;codecs=avc1.4d401f", "video/mp4;codecs=avc1.42e01f", "video/webm;codecs=vp9", "video/webm"];

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export class Film {
  // onChange is called when a recording begins or ends, with a text for the person if there is something to say.
  constructor(scene, tiles, onChange) {
    this.onChange = onChange;
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

  start(name) {
    const kind = globalThis.MediaRecorder && KINDS.find((each) => MediaRecorder.isTypeSupported(each));
    if (!kind || !this.canvas.captureStream) {
      this.onChange("This browser cannot record films, neither MP4 nor WebM. `world-models watch` writes one.");
      return;
    }
    const parts = [], [type] = kind.split(";");
    this.draw();
    const stream = this.canvas.captureStream(30);
    const recorder = new MediaRecorder(stream, { mimeType: kind, videoBitsPerSecond: 4_000_000 });
    recorder.ondataavailable = ({ data }) => parts.push(data);
    recorder.onerror = ({ error }) => this.#set(null, `The film has ended early: ${error.message}.`);
    recorder.onstop = () => {
      stream.getTracks().forEach((each) => each.stop());
      save(new Blob(parts, { type }), `${name}.${type.split("/")[1]}`);
    };
    recorder.start();
    this.#set(recorder);
  }

  stop() {
    this.recorder.stop();
    this.#set(null);
  }

  #set(recorder, text = "") {
    this.recorder = recorder;
    this.onChange(text);
  }
}
