// The page: it shows the messages of this viewer's world, and sends the person's actions.

import { drawAhead, drawBars, drawFrame, drawScene, drawSpread, drawStrip } from "./draw.js";
import { Film } from "./film.js";
import { Latents } from "./latents.js";
import { showRuns } from "./runs.js";
import { Wheel } from "./wheel.js";
import { Connection } from "./wire.js";

const byId = (id) => document.getElementById(id);
const { body } = document;
const AHEAD_STEPS = [1, 5, 10, 15, 20, 25, 30];
const DEAD = ".transport, .wheel, .dream, .latents"; // without a world
const RECENT = 30; // pictures and actions that the rate and the latency are measured over

// The last holder that was asked for: pictures tell the one of a round trip ago, and no one else hands the wheel over.
let asked = "controller";
let connection = null, wheel = null, latents = null, about = null, now = null;
let waiting = null, drawing = false, actions = 0, measured = 0;
const sentActions = [], latencies = [], shownAt = [];
const film = new Film(byId("scene"), [byId("frame"), byId("reconstruction")], showFilm);

function connect() {
  standBy("starting", "Loading the agent …");
  byId("again").hidden = true;
  const mine = new Connection(
    (message) => { if (mine === connection) receive(message); }, // an earlier one says nothing more
    (reason) => { if (mine === connection) fail(`The connection is closed${reason ? `: ${reason}` : "."}`); });
  connection = mine;
}

function fail(reason) {
  if (body.dataset.state === "failed") return; // the first reason is the one that helps
  if (film.recording) film.stop();
  standBy("failed", reason);
  byId("again").hidden = false;
  connection.close();
}

// There is no world: its controls are dead, and nobody drives.
function standBy(state, reason) {
  waiting = now = null;
  asked = "controller";
  showHolder({ holder: asked, dream: null, paused: false });
  body.dataset.state = state;
  set("reason", reason);
  set("ended", "");
  for (const each of document.querySelectorAll(DEAD)) each.inert = true;
}

function receive({ header, arrays }) {
  if (header.is === "world") begin(header);
  else if (header.is === "failed") {
    fail(header.reason);
    byId("again").hidden = Boolean(header.study);
    if (header.study) open(byId("tab-runs"));
  } else if (header.is === "ahead") {
    showAhead(arrays);
    connection.send("seen", { number: header.number });
  } else {
    waiting = { header, arrays };
    if (!drawing) drawWaiting();
  }
}

function begin(header) {
  about = header;
  asked = "controller";
  actions = 0;
  sentActions.length = 0;
  byId("run").textContent = header.run;
  byId("environment").textContent = header.environment;
  document.title = `${header.run} · World Models`;
  wheel = new Wheel(byId("controls"), header.controls, sendAction, () => hand("person"));
  latents = new Latents(header.z_size, (z) => connection.send("hold", { z }));
  byId("keys").textContent = wheel.help();
  const lacks = [header.predicts_reward ? "" : "rewards", header.predicts_end ? "" : "ends"].filter(Boolean);
  byId("heads").textContent = lacks.length ? `This M was not trained to predict ${lacks.join(" and ")}.` : "";
  connection.send("temperature", { value: Number(byId("temperature").value) });
  connection.send("speed", { value: Number(byId("speed").value) });
}

async function drawWaiting() {
  drawing = true;
  try {
    while (waiting) await draw(waiting);
  } catch (error) {
    fail(`A picture cannot be drawn: ${error.message}`);
  } finally {
    drawing = false;
  }
}

async function draw({ header, arrays }) {
  waiting = null;
  const from = connection;
  await drawScene(byId("scene"), arrays.scene);
  // Meanwhile it may have failed, or another world may have begun.
  if (from !== connection || body.dataset.state === "failed") return;
  drawFrame(byId("frame"), arrays.frame);
  drawFrame(byId("reconstruction"), arrays.reconstruction);
  latents.show(arrays.z.data, arrays.held, arrays.reconstruction);
  drawBars(byId("bars"), arrays.z.data);
  drawStrip(byId("strip"), arrays.h.data);
  showStatus(header);
  if (film.recording) film.draw();
  connection.send("seen", { number: header.number });
  measure(header);
}

const set = (id, text) => { const at = byId(id); if (at.textContent !== text) at.textContent = text; };
const fixed = (value, digits) => (value === null ? "–" : value.toFixed(digits).replace("-", "−"));

function showHolder({ holder, dream, paused }) {
  const mine = holder === "person";
  Object.assign(body.dataset, { holder, asleep: dream ? "yes" : "no", paused: paused ? "yes" : "no" });
  set("who", mine ? "You drive" : "The controller drives");
  byId("hand").firstElementChild.textContent = mine ? "Hand the wheel back" : "Take the wheel";
  byId("dream").firstElementChild.textContent = dream ? "Wake up" : "Fall asleep here";
  byId("pause").firstElementChild.textContent = paused ? "Resume" : "Pause";
  byId("step").disabled = !paused;
}

function showStatus(header) {
  const { dream } = header, before = now, mine = header.holder === "person";
  now = header;
  showHolder(header);
  if (!before) {
    body.dataset.state = "running";
    set("reason", "");
    for (const each of document.querySelectorAll(DEAD)) each.inert = false;
  }
  set("return", fixed(header.return, 1));
  set("steps", header.steps.toLocaleString("en"));
  set("track-shown", String(header.track));
  set("saw", dream ? "V saw last" : "V sees");
  set("drew", dream ? "V draws the dream" : "V's reconstruction");
  set("dream-steps", dream ? String(dream.steps) : "–");
  set("dream-reward", dream ? fixed(dream.reward, 2) : "–");
  set("dream-end", dream && dream.end_probability !== null ? `${(100 * dream.end_probability).toFixed(0)} %` : "–");
  const over = dream ? "M expects the end here. It dreams again from where you fell asleep."
    : `The episode is over: return ${fixed(header.return, 1)}`;
  set("ended", header.over ? over : "");
  wheel.show(header.action);
  if (before && (before.holder !== header.holder || !before.dream !== !dream)) {
    set("say", `${mine ? "You drive" : "The controller drives"}${dream ? ", in M's dream" : ""}`);
  }
  if (before?.track !== header.track && document.activeElement !== byId("track")) byId("track").value = header.track;
}

let ahead = null;
new ResizeObserver(() => { if (ahead) showAhead(ahead); }).observe(byId("world"));

function showAhead(arrays) {
  ahead = arrays;
  drawAhead(byId("ahead"), arrays.frames, arrays.apart, AHEAD_STEPS);
  drawSpread(byId("spread"), arrays.spread.data, arrays.end_probability?.data);
  const sum = arrays.reward ? arrays.reward.data.reduce((a, b) => a + b, 0) : null;
  const reward = sum === null ? "" : `; expected reward ${fixed(sum, 1)}`;
  set("expected", `${reward}${arrays.end_probability ? "; orange: probability of an end" : ""}`);
}

function measure({ action_number: shown }) {
  const at = performance.now();
  shownAt.push(at);
  if (shownAt.length > RECENT) shownAt.shift();
  while (sentActions.length && sentActions[0].number <= shown) {
    latencies.push(at - sentActions.shift().at);
    if (latencies.length > RECENT) latencies.shift();
  }
  measured += 1;
  if (shownAt.length < RECENT || measured % 15) return;
  const rate = (1000 * (shownAt.length - 1)) / (at - shownAt[0]);
  const middle = [...latencies].sort((a, b) => a - b)[latencies.length >> 1];
  const delay = middle === undefined ? "" : ` · key to picture ${middle.toFixed(0)} ms`;
  set("rate", `${rate.toFixed(0)} pictures a second${delay}`);
}

function sendAction(action, at) {
  actions += 1;
  sentActions.push({ number: actions, at });
  if (sentActions.length > RECENT) sentActions.shift();
  connection.send("steer", { number: actions, action });
}

function hand(holder) {
  if (!now || asked === holder) return;
  asked = holder;
  wheel.letGo();
  connection.send("wheel", { holder });
}

const commands = {
  t: () => hand(asked === "person" ? "controller" : "person"),
  m: () => connection.send("dream", { on: !now.dream }),
  p: () => connection.send("pause", { on: !now.paused }),
  ".": () => { if (now.paused) connection.send("step"); },
  n: () => connection.send("track", { seed: (now.track + 1) % 2 ** 31 }),
  f: () => film.photo(fileName()),
  r: record,
};

const fileName = () =>
  `${about.run}-track-${now.track}-step-${now.steps}${now.dream ? `-dream-${now.dream.steps}` : ""}`;

function record() {
  if (film.recording) film.stop();
  else film.start(fileName());
}

function showFilm(text) {
  byId("record").setAttribute("aria-pressed", film.recording);
  byId("record").firstElementChild.textContent = film.recording ? "Stop" : "Record";
  set("film-says", text);
}

const buttons = { hand: "t", dream: "m", pause: "p", step: ".", next: "n", photo: "f", record: "r" };
for (const [id, key] of Object.entries(buttons)) byId(id).onclick = () => { if (now) commands[key](); };

const typesInto = (target) => target.matches?.("input[type=number], select");

addEventListener("keydown", (event) => {
  if (!now || event.ctrlKey || event.metaKey || event.altKey || typesInto(event.target)
    || byId("world").hidden) return;
  const slides = event.target.matches?.("input[type=range]");
  if (asked === "person" && !slides && wheel.key(event, true)) event.preventDefault();
  else if (!event.repeat && commands[event.key.toLowerCase()]) commands[event.key.toLowerCase()]();
});
addEventListener("keyup", (event) => wheel?.key(event, false));
addEventListener("blur", () => wheel?.letGo());

// After a slider or a mouse choice, the keys steer again.
addEventListener("pointerup", ({ target }) => { if (target.matches?.("input[type=range]")) target.blur(); });
let pointed = false; // the keyboard stays in the list, for its next step
byId("speed").onpointerdown = () => { pointed = true; };
byId("speed").onkeydown = () => { pointed = false; };
byId("speed").onchange = ({ target }) => {
  connection.send("speed", { value: Number(target.value) });
  if (pointed) target.blur();
};
byId("temperature").oninput = ({ target }) => {
  set("temperature-shown", Number(target.value).toFixed(2));
  connection.send("temperature", { value: Number(target.value) });
};
byId("tracks").onsubmit = (event) => {
  event.preventDefault();
  connection.send("track", { seed: Number(byId("track").value) });
  byId("track").blur();
};
byId("again").onclick = connect;

function steer(at) {
  if (now && wheel.touched() && !byId("world").hidden) hand("person");
  if (now && asked === "person") wheel.update(at);
  requestAnimationFrame(steer);
}
requestAnimationFrame(steer);

const tabs = [...document.querySelectorAll("[role=tab]")];
function open(tab) {
  for (const each of tabs) {
    const chosen = each === tab;
    each.setAttribute("aria-selected", chosen);
    each.tabIndex = chosen ? 0 : -1;
    byId(each.getAttribute("aria-controls")).hidden = !chosen;
  }
  showRuns(tab.id === "tab-runs");
}
for (const tab of tabs) {
  tab.onclick = ({ detail }) => {
    open(tab);
    if (detail) tab.blur(); // after a pointer the keys steer
  };
  tab.onkeydown = ({ key }) => {
    if (key !== "ArrowLeft" && key !== "ArrowRight") return;
    if (asked === "person" && !byId("world").hidden) return; // the wheel has the key
    const other = tabs[(tabs.indexOf(tab) + 1) % tabs.length];
    other.focus();
    open(other);
  };
}
connect();
