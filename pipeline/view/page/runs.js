// The state of the runs. It is requested every few seconds while its tab is open.

const EVERY_MS = 2000;
const COLOURS = {
  training: "blue", "held out": "vermillion", "best candidate": "faint", mean: "blue", validation: "vermillion",
};
const colour = (name) => `var(--${COLOURS[name]})`; // it follows the page from light to dark
const SVG = "http://www.w3.org/2000/svg";

let timer = null, asking = 0, last = "";
const media = new Map(); // films and pictures by their address: they are loaded once, and keep playing

function element(name, facts = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(facts)) {
    if (key.startsWith("data-") || key.startsWith("aria-") || key === "scope") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

function shape(name, facts, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(facts)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function number(value, digits = 1) {
  if (value === null) return "not finite";
  return value.toLocaleString("en", { maximumFractionDigits: digits }).replace("-", "−");
}

function duration(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function showRuns(open) {
  clearTimeout(timer);
  asking += 1; // an answer that is still on its way has come too late
  if (open) ask(asking);
}

async function ask(mine) {
  let text = "", lacks = "";
  try {
    const answer = await fetch("runs");
    text = await answer.text();
    if (!answer.ok) throw new Error(text);
    if (mine === asking) refresh(text);
  } catch (error) {
    lacks = `The state of the runs cannot be read: ${error.message}`;
  }
  if (mine !== asking) return;
  const problem = document.getElementById("runs-problem");
  if (problem.textContent !== lacks) problem.textContent = lacks;
  timer = setTimeout(() => ask(mine), EVERY_MS);
}

// What has not changed stays, for readers of the screen; and so does a film that fills the screen or floats above it.
function refresh(text) {
  if (document.fullscreenElement || document.pictureInPictureElement) return;
  const table = document.getElementById("overview");
  if (text !== last) {
    show(JSON.parse(text), table);
    last = text;
  }
  table.tabIndex = table.scrollWidth > table.clientWidth + 1 ? 0 : -1; // a box that scrolls takes the keyboard
}

function show({ study, runs }, table) {
  table.replaceChildren(...(study ? [overview(study, runs)] : []));
  const cards = document.getElementById("cards");
  cards.classList.toggle("one", runs.length === 1);
  const focused = document.activeElement?.closest?.("video")?.src;
  cards.replaceChildren(...runs.map(card));
  for (const [address, each] of media) if (!each.isConnected) media.delete(address);
  if (focused) [...media.values()].find((each) => each.src === focused)?.focus();
}

function state(run) {
  if (run.problem) return run.passing ? "no answer" : "damaged";
  if (run.waiting) return "not begun";
  if (!run.now) return "complete";
  return run.alive ? run.now.title : `stopped in ${run.now.title}`;
}

function validation(run) {
  const series = run.curves?.flatMap((curve) => curve.series).filter(({ name }) => name === "validation");
  return series?.at(-1)?.points.at(-1)?.[1];
}

const score = (run) => (run.scores ? run.scores.best ?? run.scores.mean : null);
const left = (now) => (now?.left_s == null ? "–" : duration(now.left_s));

function overview(study, runs) {
  const head = ["Run", "State", "Done", "Time left", "Last validation", "Test return"];
  const names = head.map((text, index) =>
    element("th", { scope: "col", className: index > 1 ? "n" : "", textContent: text }));
  const rows = runs.map((run) => {
    const test = score(run), last = validation(run), { now } = run;
    return element("tr", {},
      element("th", { scope: "row", textContent: run.name }), element("td", { textContent: state(run) }),
      element("td", { className: "n", textContent: now && run.alive ? done(now) : "–" }),
      element("td", { className: "n", textContent: run.alive ? left(now) : "–" }),
      element("td", { className: "n", textContent: last === undefined ? "–" : number(last) }),
      element("td", { className: "n", textContent: test ? `${number(test.mean)} ± ${number(test.sd)}` : "–" }));
  });
  return element("table", {}, element("caption", { textContent: `Study ${study}` }),
    element("thead", {}, element("tr", {}, ...names)),
    element("tbody", {}, ...rows));
}

const done = ({ done, total, unit }) => `${number(done)}${total === null ? "" : ` of ${number(total)}`} ${unit}`;

function card(run, index) {
  const made = element("article", { className: "card" });
  const alive = run.alive ? "under way" : state(run);
  made.append(element("header", {}, element("h2", { textContent: run.name || run.title || "Run" }),
    element("span", { className: run.alive ? "pill alive" : "pill", textContent: alive })));
  const facts = run.environment ? `${run.environment}, seed ${run.seed}, ` : "";
  made.append(element("p", { className: "note where", textContent: facts + run.where }));
  if (run.problem) made.append(element("p", { textContent: run.problem }));
  if (!run.stages) return made;
  const stages = run.stages.map(({ title, state: is, seconds }) =>
    element("li", { "data-is": is, title: is }, seconds == null ? title : `${title} ${duration(seconds)}`,
      element("span", { className: "unseen", textContent: `: ${is}` })));
  made.append(element("ol", { className: "stages" }, ...stages));
  if (run.now) made.append(progress(run));
  if (run.scores) {
    const texts = Object.entries(run.scores).map(([name, each]) =>
      `${name} ${number(each.mean)} ± ${number(each.sd)} on ${number(each.episodes)} tracks`);
    made.append(element("p", { className: "now", textContent: `Test return: ${texts.join("; ")}` }));
  }
  made.append(element("div", { className: "curves" }, ...run.curves.map(curve)));
  if (run.film) made.append(film(`runs/${index}/film?${run.film}`, "video", "The last film: a test episode"));
  else if (run.picture) made.append(film(`runs/${index}/picture?${run.picture}`, "img",
    "V's reconstructions: originals above"));
  return made;
}

function progress(run) {
  const { now } = run, rate = now.rate;
  const text = [now.done || now.total ? `${now.title}: ${done(now)}` : now.title];
  if (rate) text.push(rate >= 1 ? `${number(rate)} ${now.unit} a second` : `${duration(1 / rate)} each`);
  if (!run.alive) text.push(run.seen_s == null ? "not running"
    : `not running, last sign of life ${duration(run.seen_s)} ago`);
  else if (now.left_s != null) text.push(`${duration(now.left_s)} left`);
  const box = element("div", {}, element("p", { className: "now", textContent: text.join(" · ") }));
  if (now.total) {
    box.prepend(element("progress", { max: now.total, value: Math.min(now.done, now.total), "aria-label": now.title }));
  }
  return box;
}

function film(address, kind, caption) {
  if (!media.has(address)) {
    const made = kind === "video" ? element("video", { controls: true, loop: true, muted: true, playsInline: true,
      preload: "metadata", "aria-label": caption }) : element("img", { alt: caption });
    made.onerror = () => { // it is requested again with the next state
      media.delete(address);
      last = "";
    };
    made.src = address;
    media.set(address, made);
  }
  return element("figure", {}, media.get(address), element("figcaption", { textContent: caption }));
}

function curve({ title, x, series }) {
  const width = 320, height = 150, start = 40, bottom = height - 20;
  const points = series.flatMap((each) => each.points);
  const bounds = (axis) => {
    const values = points.map((point) => point[axis]);
    return [Math.min(...values), Math.max(...values)];
  };
  const [first, last] = bounds(0), [low, high] = bounds(1);
  const at = ([step, value]) => [
    start + ((width - start - 6) * (step - first)) / (last - first || 1),
    bottom - ((bottom - 10) * (value - low)) / (high - low || 1),
  ].map((each) => each.toFixed(1));
  const names = series.map((each) => each.name).join(", ");
  const drawing = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `${title}, by ${x}: ${names}, from ${number(low, 2)} to ${number(high, 2)}` });
  drawing.append(shape("line", { class: "grid", x1: start, x2: width, y1: bottom, y2: bottom }),
    shape("line", { class: "grid", x1: start, x2: width, y1: 10, y2: 10 }),
    shape("text", { x: start - 5, y: 14, "text-anchor": "end" }, number(high, high < 10 ? 2 : 0)),
    shape("text", { x: start - 5, y: bottom + 3, "text-anchor": "end" }, number(low, high < 10 ? 2 : 0)),
    shape("text", { x: start, y: height - 5 }, number(first, 0)),
    shape("text", { x: width - 6, y: height - 5, "text-anchor": "end" }, `${x} ${number(last, 0)}`));
  for (const { name, points: some } of series) {
    const stroke = colour(name);
    const places = some.map(at);
    if (places.length > 1) drawing.append(shape("path", { d: `M${places.join("L")}`, stroke }));
    if (places.length === 1 || (places.length < 40 && name !== "training")) {
      drawing.append(...places.map(([cx, cy]) => shape("circle", { cx, cy, r: 2.4, fill: stroke })));
    }
  }
  const legend = element("p", { className: "legend" }, ...series.map(({ name, points: some, not_finite: lost }) => {
    const key = element("i");
    key.style.background = colour(name);
    return element("span", {}, key, `${name} ${number(some.at(-1)[1], 2)}${lost ? `, ${lost} not finite` : ""}`);
  }));
  return element("figure", {}, element("h3", { textContent: title }), drawing, legend);
}
