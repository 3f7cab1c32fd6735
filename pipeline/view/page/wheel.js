// The person's action: from keys, from pads on the screen, and from a gamepad. Its shape follows the action space.

const FULL_TURN_S = 0.25; // a key turns an axis that rests in its middle this quickly from there to its end
const DEAD_ZONE = 0.12;
const TAKES = 0.5; // a stick or a trigger this far from its rest takes the wheel
const ALIASES = { KeyA: "ArrowLeft", KeyD: "ArrowRight", KeyW: "ArrowUp", KeyS: "ArrowDown" };
const SIGNS = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓" };

const sign = (key) => SIGNS[key] ?? key?.replace("Key", "") ?? "";

function element(name, classes, text = "") {
  const made = document.createElement(name);
  made.className = classes;
  made.textContent = text;
  return made;
}

export class Wheel {
  // onAction gets the numbers of the action and the time of the input; onTake is called when a pad is pressed.
  constructor(box, controls, onAction, onTake) {
    this.controls = controls;
    this.onAction = onAction;
    this.onTake = onTake;
    this.held = new Set();
    this.sliders = [];
    this.sent = "";
    this.turned = performance.now();
    this.inputAt = null;
    this.padRests = false;
    box.replaceChildren();
    if (controls.kind === "axes") this.show = this.#axes(box);
    else this.show = controls.kind === "choices" ? this.#choices(box) : this.#switches(box);
    this.keys = this.#keys();
    this.letGo();
  }

  // In words, for the person.
  help() {
    const { kind, axes, blocks, switches } = this.controls;
    if (kind === "axes") {
      const named = axes.filter((axis) => axis.plus).map((axis) =>
        `${axis.name} ${sign(axis.minus)} ${sign(axis.plus)}`);
      return `Keys: ${named.join(", ").replace(/ +/g, " ")}. Pads and a gamepad work too.`;
    }
    const count = kind === "choices" ? blocks[0].names.length : switches.length;
    const arrows = kind === "choices" ? ["", ...Object.keys(SIGNS).filter((key) => this.keys.has(key)).map(sign)]
      .join(" ").replace(" ", ", ") : "";
    const digits = count > 1 ? `1 to ${count < 10 ? count : 0}` : "1";
    return `Keys: hold ${digits}${arrows}. Pads and a gamepad work too.`;
  }

  // Whether a key is one of the wheel's; it is then held or let go.
  key(event, down) {
    const code = this.keys.has(event.code) ? event.code : ALIASES[event.code];
    if (!this.keys.has(code)) return false;
    this.#hold(this.keys.get(code), down, event.timeStamp);
    return true;
  }

  letGo() {
    this.held.clear();
    this.sent = "";
    this.values = this.controls.axes?.map((axis) => axis.rest);
  }

  // Whether the gamepad, which lay at rest, has just been touched. It is called for each picture of the screen. What is
  // not at rest when the gamepad appears, such as a trigger that is an axis, takes nothing.
  touched() {
    const pad = this.#gamepad();
    const rests = pad.connected && ![...pad.axes, ...pad.buttons].some((value) => Math.abs(value) > TAKES);
    const touched = pad.connected && this.padRests && !rests;
    this.padRests = rests;
    return touched;
  }

  // Compute the action of now, and send it if it has changed.
  update(now) {
    const passed_s = Math.min(0.1, (now - this.turned) / 1000);
    this.turned = now;
    const action = this[`_${this.controls.kind}`](passed_s, this.#gamepad());
    const text = action.map((value) => value.toFixed(4)).join();
    if (text === this.sent) return;
    this.sent = text;
    this.onAction(action, this.inputAt ?? now);
    this.inputAt = null;
  }

  #hold(what, down, at) {
    if (down === this.held.has(what)) return;
    if (down) this.held.add(what);
    else this.held.delete(what);
    this.inputAt ??= at;
  }

  #keys() {
    const keys = new Map();
    const { kind, axes, blocks, switches } = this.controls;
    if (kind === "axes") {
      axes.forEach((axis, index) => {
        if (axis.minus) keys.set(axis.minus, `${index}-`);
        if (axis.plus) keys.set(axis.plus, `${index}+`);
      });
      return keys;
    }
    const count = kind === "choices" ? blocks[0].names.length : switches.length;
    for (let index = 0; index < Math.min(count, 10); index++) {
      const what = kind === "choices" ? `0:${index}` : `${index}`;
      keys.set(`Digit${(index + 1) % 10}`, what);
      keys.set(`Numpad${(index + 1) % 10}`, what);
    }
    for (const [key, index] of Object.entries(blocks?.[0].keys ?? {})) keys.set(key, `0:${index}`);
    return keys;
  }

  #pad(text, label, what) {
    const pad = element("button", "hold", text);
    pad.type = "button";
    pad.setAttribute("aria-label", label);
    pad.dataset.holds = what;
    const fingers = new Set(); // and pens and mice that are on it: another pad that takes the focus leaves them there
    const press = (event, down) => {
      if (down) this.onTake();
      this.#hold(what, down, event.timeStamp);
      event.preventDefault();
    };
    pad.addEventListener("pointerdown", (event) => {
      fingers.add(event.pointerId);
      pad.setPointerCapture(event.pointerId);
      pad.focus();
      press(event, true);
    });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      pad.addEventListener(end, (event) => {
        fingers.delete(event.pointerId);
        if (!fingers.size) press(event, false);
      });
    }
    for (const [kind, down] of [["keydown", true], ["keyup", false]]) {
      pad.addEventListener(kind, (event) => { if (event.key === " " || event.key === "Enter") press(event, down); });
    }
    pad.addEventListener("blur", (event) => { if (!fingers.size) this.#hold(what, false, event.timeStamp); });
    pad.addEventListener("contextmenu", (event) => event.preventDefault());
    return pad;
  }

  #axes(box) {
    const fills = this.controls.axes.map((axis, index) => {
      const row = element("div", "axis"), middle = element("div", "middle"), name = element("div", "name", axis.name);
      const value = element("span", ""), fill = element("i", "");
      name.append(value);
      middle.append(name);
      if (axis.plus) {
        const gauge = element("div", "gauge");
        gauge.append(fill);
        middle.append(gauge);
        if (axis.minus) row.append(this.#pad(sign(axis.minus), `${axis.name}: less`, `${index}-`));
        row.append(middle, this.#pad(sign(axis.plus), `${axis.name}: more`, `${index}+`));
      } else {
        const slider = element("input", "");
        const step = (axis.high - axis.low) / 100;
        Object.assign(slider, { type: "range", min: axis.low, max: axis.high, step, value: axis.rest });
        slider.setAttribute("aria-label", axis.name);
        slider.addEventListener("input", (event) => { this.inputAt ??= event.timeStamp; this.onTake(); });
        this.sliders[index] = slider;
        middle.append(slider);
        row.append(middle);
      }
      box.append(row);
      return { axis, value, fill };
    });
    return (action) => fills.forEach(({ axis, value, fill }, index) => {
      const part = (number) => (100 * (number - axis.low)) / (axis.high - axis.low);
      const from = part(Math.min(axis.rest, action[index])), to = part(Math.max(axis.rest, action[index]));
      value.textContent = action[index]?.toFixed(2) ?? "–"; // null is sent for what is not finite
      fill.style.left = `${from}%`;
      fill.style.width = `${Math.max(0, to - from)}%`;
    });
  }

  #choices(box) {
    const pads = this.controls.blocks.flatMap(({ names }, block) => {
      const row = element("div", "choices");
      const made = names.map((name, index) => this.#pad(name, `Choice ${name}`, `${block}:${index}`));
      row.append(...made);
      box.append(row);
      return made;
    });
    return (action) => pads.forEach((pad, index) => pad.classList.toggle("taken", action[index] > 0.5));
  }

  #switches(box) {
    const row = element("div", "choices");
    const pads = this.controls.switches.map((name, index) => this.#pad(name, `Switch ${name}`, `${index}`));
    row.append(...pads);
    box.append(row);
    return (action) => pads.forEach((pad, index) => pad.classList.toggle("taken", action[index] > 0.5));
  }

  // The first gamepad: its axes without their dead zones, its buttons as numbers.
  #gamepad() {
    const pad = [...(navigator.getGamepads?.() ?? [])].find(Boolean);
    if (!pad) return { connected: false, axes: [], buttons: [] };
    const axes = pad.axes.map((value) => (Math.abs(value) < DEAD_ZONE ? 0 : value));
    return { connected: true, axes, buttons: pad.buttons.map((each) => each.value) };
  }

  _axes(passed_s, pad) {
    const drives = this.controls.axes[0].name === "steering";
    this.controls.axes.forEach((axis, index) => {
      const { low, high } = axis;
      const rest = this.sliders[index] ? Number(this.sliders[index].value) : axis.rest;
      const way = this.held.has(`${index}+`) - this.held.has(`${index}-`);
      let target = way > 0 ? high : way < 0 ? low : rest;
      // Triggers of a gamepad are gas and brake; its sticks are the axes, and up is more.
      const stick = drives && index > 0 ? pad.buttons[index === 1 ? 7 : 6] ?? 0
        : (pad.axes[index] ?? 0) * (index % 2 ? -1 : 1);
      if (stick) target = stick > 0 ? rest + stick * (high - rest) : rest - stick * (low - rest);
      const step = rest > low && !stick && !this.sliders[index] ? (passed_s / FULL_TURN_S) * (high - rest) : Infinity;
      const value = this.values[index];
      this.values[index] = value < target ? Math.min(target, value + step) : Math.max(target, value - step);
    });
    return this.values;
  }

  _choices(passed_s, pad) {
    return this.controls.blocks.flatMap(({ names, rest }, block) => {
      let chosen = names.findIndex((_, index) => this.held.has(`${block}:${index}`));
      if (chosen < 0 && block === 0) {
        chosen = pad.buttons.slice(0, names.length).findIndex((value) => value > 0.5);
        if (chosen < 0) chosen = this.#pushed(pad);
      }
      if (chosen < 0) chosen = rest;
      return names.map((_, index) => Number(index === chosen));
    });
  }

  // The choice whose arrow points where the first stick does; -1 if there is none.
  #pushed({ axes: [x = 0, y = 0] }) {
    const key = Math.abs(x) >= Math.abs(y) ? x && (x < 0 ? "ArrowLeft" : "ArrowRight")
      : y < 0 ? "ArrowUp" : "ArrowDown";
    return this.controls.blocks[0].keys[key] ?? -1;
  }

  _switches(passed_s, pad) {
    return this.controls.switches.map((_, index) => Number(this.held.has(`${index}`) || pad.buttons[index] > 0.5));
  }
}
