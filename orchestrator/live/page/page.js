// Asks every two seconds what there is, and redraws what has changed. All text goes in as text, never as markup.
"use strict";

const INTERVAL_MS = 2000;
const SVG = "http://www.w3.org/2000/svg";
const EXPERT_TEXTS = ["interval", "state", "node"];
const EXPERT_NUMBERS = ["images", "loss", "images/s", "left"];
const at = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function draw(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// ---- what was drawn, so that only what has changed is drawn again

const shown = new Map();

function update(id, told, render) {
  const text = JSON.stringify(told);
  if (shown.get(id) === text) return;
  shown.set(id, text);
  at(id).replaceChildren(...render(told));
}

// ---- parts

function bar(share, label) {
  const percent = Math.round(100 * Math.min(1, Math.max(0, share)));
  const inner = make("i");
  inner.style.width = `${percent}%`;
  return make("div", { class: "bar", role: "progressbar", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": percent }, inner);
}

function spark(curve, name) {
  if (curve.length < 2) return "";
  const losses = curve.map(([, loss]) => Math.log(Math.max(loss, 1e-12)));
  const low = Math.min(...losses), span = Math.max(...losses) - low || 1;
  const first = curve[0][0], width = curve.at(-1)[0] - first || 1;
  const points = curve.map(([images], i) => `${(2 + 116 * (images - first) / width).toFixed(1)},${(2 + 24 * (1 - (losses[i] - low) / span)).toFixed(1)}`);
  const said = `loss of ${name}: ${curve[0][1].toPrecision(3)} at ${curve[0][0].toLocaleString("en")} images, ${curve.at(-1)[1].toPrecision(3)} at ${curve.at(-1)[0].toLocaleString("en")}`;
  return draw("svg", { class: "spark", viewBox: "0 0 120 28", role: "img", "aria-label": said, preserveAspectRatio: "none" },
    draw("title", {}, said),
    draw("polyline", { points: points.join(" "), fill: "none", stroke: "currentColor", "stroke-width": 1.6, "vector-effect": "non-scaling-stroke" }));
}

function si(value, digits = 3) {
  for (const [factor, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (Math.abs(value) >= factor) return `${+(value / factor).toPrecision(digits)} ${letter}`;
  return `${+value.toPrecision(digits)}`;
}

// Of both ends and the middle, with as many digits as tell them apart.
function ticks(low, high) {
  const values = low === high ? [low] : [low, (low + high) / 2, high];
  for (let digits = 3; ; digits++) {
    const found = values.map((value) => [value, si(value, digits)]);
    if (digits === 8 || new Set(found.map(([, text]) => text)).size === values.length) return found;
  }
}

// points: [x, y, class, words]; the line goes through `line` in steps.
function chart(points, line, names, caption) {
  const left = 68, right = 470, top = 12, bottom = 190;
  const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
  const xLow = Math.min(...xs), xHigh = Math.max(...xs), yLow = Math.min(...ys), yHigh = Math.max(...ys);
  const x = (value) => xHigh === xLow ? (left + right) / 2 : left + 8 + (right - left - 16) * (value - xLow) / (xHigh - xLow);
  const y = (value) => yHigh === yLow ? (top + bottom) / 2 : bottom - 8 - (bottom - top - 16) * (value - yLow) / (yHigh - yLow);
  const svg = draw("svg", { class: "chart", viewBox: "0 0 480 232", role: "img", "aria-label": caption },
    draw("path", { class: "axis", d: `M${left} ${top}V${bottom}H${right}`, fill: "none" }));
  for (const [value, text] of ticks(xLow, xHigh)) svg.append(draw("text", { x: x(value), y: bottom + 17, "text-anchor": value === xHigh && value !== xLow ? "end" : "middle" }, text));
  for (const [value, text] of ticks(yLow, yHigh)) svg.append(draw("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, text));
  svg.append(draw("text", { x: (left + right) / 2, y: 228, "text-anchor": "middle" }, names[0]));
  const path = line.map(([px, py], i) => i ? `H${x(px)}V${y(py)}` : `M${x(px)} ${y(py)}`).join("");
  svg.append(draw("path", { d: path, fill: "none", stroke: "currentColor", "stroke-width": 1.8 }));
  for (const [px, py, kind, words] of points) svg.append(draw("circle", { class: kind, cx: x(px), cy: y(py), r: 4 }, draw("title", {}, words)));
  return make("figure", {}, svg, make("figcaption", {}, caption));
}

// ---- sections

function head(run) {
  const parts = [make("p", {}, `${run.kind}: `, make("span", { class: `driver ${run.ended === "failed" ? "failed" : run.driver}` }, run.says), run.advice ? `; ${run.advice}` : "")];
  if (run.doing) parts.push(make("p", {}, run.doing));
  if (run.share !== null) parts.push(bar(run.share, `progress of ${run.name}`));
  if (run.states) parts.push(make("p", {}, run.states));
  parts.push(make("p", { class: "soft" }, run.by));
  return parts;
}

function expertsTable(experts) {
  // A column in which nobody has anything is left out.
  const used = (name) => experts.some(({ cells }) => cells[name]);
  const texts = EXPERT_TEXTS.filter(used), numbers = EXPERT_NUMBERS.filter(used), words = ["restarts", "remark"].filter(used);
  const rows = experts.map(({ cells, state, share, curve }) => {
    const cell = (name, kind, ...children) => make("td", { "data-name": name, class: kind }, ...children.filter((child) => child !== ""));
    return make("tr", {},
      make("th", { scope: "row" }, cells.expert),
      ...texts.map((name) => cell(name, name === "state" ? `driver ${state}` : "", cells[name])),
      cell("progress", "progress", bar(share, `training of ${cells.expert}`), make("span", {}, cells.share)),
      ...numbers.map((name) => cell(name, "n", cells[name])),
      cell("loss so far", "", spark(curve, cells.expert)),
      ...words.map((name) => cell(name, cells[name] ? "wrap" : "", cells[name])));
  });
  const head = (name, kind) => make("th", { scope: "col", class: kind }, name);
  const heads = ["expert", ...texts, "progress"].map((name) => head(name, "")).concat(numbers.map((name) => head(name, "n")), ["loss so far", ...words].map((name) => head(name, "")));
  return [make("table", { class: "cards" }, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows))];
}

function configurations(study) {
  const kind = (index) => index >= study.num_texts && index < study.columns.length - 1 ? "n" : index === study.columns.length - 1 ? "wrap" : "";
  const best = new Set(study.front.filter((point) => point.is_best).map((point) => String(point.number)));
  const rows = study.rows.map((row) => make("tr", best.has(row[0]) ? { class: "best" } : {},
    make("th", { scope: "row" }, `#${row[0]}`),
    ...row.slice(1).map((text, index) => make("td", index ? { class: kind(index + 1) } : { class: text.split(" ")[0] }, text))));
  const heads = study.columns.map((name, index) => make("th", { scope: "col", class: kind(index) === "n" ? "n" : "" }, name));
  const notes = [];
  if (study.left_out) notes.push(make("p", { class: "soft" }, `${study.left_out} earlier configurations are not shown.`));
  return [...notes, make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows))];
}

function charts({ score, doubt, best, front }) {
  const found = [];
  if (doubt) found.push(make("p", { class: "soft" }, doubt));
  if (best.length) {
    const points = best.map(([images, value]) => [images, value, "on-front", `${value.toPrecision(4)} after ${images.toLocaleString("en")} images`]);
    found.push(chart(points, best, ["images trained by the study"], `Best ${score} so far: ${best.at(-1)[1].toPrecision(4)} after ${best.at(-1)[0].toLocaleString("en")} images; lower is better`));
  }
  if (front.length) {
    const points = front.map(({ number, score: value, macs, is_best }) => [macs, value, is_best ? "on-front" : "dot", `#${number}: ${value.toPrecision(4)} at ${si(macs)}`]);
    const line = front.filter((point) => point.is_best).map(({ macs, score: value }) => [macs, value]).sort((a, b) => a[0] - b[0]);
    found.push(chart(points, line, ["multiply-adds per denoising step"], `${score} against cost; the line is the Pareto front (${line.length} of ${front.length} configurations, bold in the table)`));
  }
  return found;
}

function pictures(told) {
  return told.map(({ path, alt }) => make("figure", {},
    make("a", { href: path }, make("img", { src: path, alt, loading: "lazy" })), make("figcaption", {}, alt)));
}

function show(run) {
  document.title = `${run.name} · rememe live`;
  at("title").textContent = run.name;
  update("head", { ...run, experts: 0, pictures: 0, restarts: 0, study: 0 }, head);
  for (const [id, is] of [["study", run.study], ["experts", run.experts.length], ["restarts", run.restarts.length], ["pictures", run.pictures.length]]) at(id).hidden = !is;
  if (run.study) {
    update("charts", run.study, charts);
    update("configurations", run.study, configurations);
  }
  update("experts-table", run.experts, expertsTable);
  update("restarts-list", run.restarts, (told) => told.map((sentence) => make("li", {}, sentence)));
  update("pictures-list", run.pictures, pictures);
}

function list({ runs, left_out }) {
  const chosen = current(runs);
  const items = runs.map(({ name, driver, cells }) => make("li", {},
    make("a", { href: `#${encodeURIComponent(name)}`, ...(name === chosen ? { "aria-current": "page" } : {}) }, name,
      make("small", {}, `${cells.kind}, `, make("span", { class: driver }, cells.driver.split(", last heard")[0].split(" 20")[0])))));
  return left_out ? [...items, make("li", { class: "soft" }, `and ${left_out} earlier ones`)] : items;
}

// ---- the loop

function current(runs) {
  try {
    const wanted = decodeURIComponent(location.hash.slice(1));
    if (wanted && wanted !== "main") return wanted;
  } catch { /* not an address of ours */ }
  return runs.length ? runs[0].name : null;
}

async function ask(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(60000) });
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error);
  return told;
}

let turn = 0;

async function look() {
  const mine = ++turn;
  try {
    const all = await ask("api/runs");
    const name = current(all.runs);
    const run = name === null ? null : await ask(`api/runs/${encodeURIComponent(name)}`);
    if (mine !== turn) return;
    at("where").textContent = all.where;
    update("runs", { ...all, name }, list);
    if (run) show(run);
    else at("title").textContent = "No run has been started here yet";
    at("answers").className = "";
    at("answers").textContent = "";
  } catch (error) {
    if (mine !== turn) return;
    const is_lost = error instanceof TypeError || error.name === "TimeoutError";
    at("answers").className = "lost";
    at("answers").textContent = is_lost ? "no answer: rememe ui has ended, or the tunnel to it; what is shown is the last known" : error.message;
  }
}

async function loop() {
  if (!document.hidden) await look();
  setTimeout(loop, INTERVAL_MS);
}

addEventListener("hashchange", look);
document.addEventListener("visibilitychange", () => document.hidden || look());
loop();
