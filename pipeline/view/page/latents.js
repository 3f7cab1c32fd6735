// A slider for each dimension of z. They follow the agent until a person moves one; then they hold still, and V draws
// their latents, until they are let go.

import { drawFrame } from "./draw.js";

const LARGEST = 4;
const MOST = 1e6; // the server takes no larger number, and none that is not finite
const EVERY = 4; // pictures between two moves of the sliders: to lay out dozens of them costs more than a picture

export class Latents {
  constructor(size, send) {
    this.send = send;
    this.holding = false;
    this.z = new Array(size).fill(0); // exact: a slider shows it rounded, within its bounds, and some pictures late
    this.pictures = 0;
    const made = Array.from({ length: size }, (_, index) => {
      const label = document.createElement("label"), slider = document.createElement("input");
      Object.assign(slider, { type: "range", min: -LARGEST, max: LARGEST, step: 0.05, value: 0 });
      slider.setAttribute("aria-label", `z ${index + 1}`);
      slider.addEventListener("input", () => this.#hold(index));
      label.append(String(index + 1), slider);
      return { label, slider };
    });
    this.sliders = made.map(({ slider }) => slider);
    document.getElementById("sliders").replaceChildren(...made.map(({ label }) => label));
    this.button = document.getElementById("release");
    this.button.onclick = () => this.release();
    this.#say();
  }

  show(z, held, reconstruction) {
    if (!this.holding) {
      this.z = Array.from(z, (each) => (Math.abs(each) <= MOST ? each : 0));
      if (this.pictures++ % EVERY === 0) this.#follow();
    }
    drawFrame(document.getElementById("held"), (this.holding && held) || reconstruction);
  }

  release() {
    this.holding = false;
    this.send(null);
    this.#say();
  }

  #hold(moved) {
    this.z[moved] = Number(this.sliders[moved].value);
    if (!this.holding) this.#follow();
    this.holding = true;
    this.send(this.z);
    this.#say();
  }

  #follow() {
    this.sliders.forEach((slider, index) => { slider.value = this.z[index]; });
  }

  #say() {
    this.button.disabled = !this.holding;
    document.querySelector(".held").classList.toggle("is", this.holding);
    document.getElementById("held-caption").textContent = this.holding ? "yours" : "follows the agent";
  }
}
