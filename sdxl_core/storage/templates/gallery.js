"use strict";
// Rows come in chunks, each a script that calls galleryChunk. Only chunks that a page of cards needs
// are loaded, and few are kept, so that a hundred thousand rows cost no more than a hundred.
// Texts of rows reach the page through textContent alone.

const CARDS_PER_PAGE = 60;
const CHUNKS_KEPT = 24;
const CHUNKS_AT_ONCE = 8;
const FIRST_COLUMNS = ["id", "status", "reason", "detail", "seed", "height", "width", "steps", "guidance_scale", "sampler", "refiner"];

const index = JSON.parse(document.getElementById("index").textContent);
const byId = (id) => document.getElementById(id);
const chunks = new Map();   // number -> rows, the most recently used last
const waiting = new Map();  // number -> functions to call with the rows
const firstRows = [];       // of each chunk
index.chunks.reduce((sum, chunk) => (firstRows.push(sum), sum + chunk.num_rows), 0);

let page = 0;
let search = null;          // matches of the current filter, found so far
let shown = [];             // rows on the page
let opened = -1;            // which of them the dialog shows
let turn = 0;               // only the latest call of show() may draw

globalThis.galleryChunk = (number, data) => {
  const rows = data.rows.map((cells) => {
    const row = {};
    data.columns.forEach((column, at) => { row[column] = cells[at]; });
    return row;
  });
  chunks.set(number, rows);
  while (chunks.size > CHUNKS_KEPT) chunks.delete(chunks.keys().next().value);
  (waiting.get(number) || []).forEach((resolve) => resolve(rows));
  waiting.delete(number);
};

function loadChunk(number) {
  if (chunks.has(number)) {
    const rows = chunks.get(number);
    chunks.delete(number);
    chunks.set(number, rows);
    return Promise.resolve(rows);
  }
  return new Promise((resolve, reject) => {
    if (waiting.has(number)) { waiting.get(number).push(resolve); return; }
    waiting.set(number, [resolve]);
    const script = document.createElement("script");
    script.src = "_gallery/data-" + String(number).padStart(4, "0") + ".js";
    script.onload = () => script.remove();
    script.onerror = () => { waiting.delete(number); reject(new Error("cannot load " + script.getAttribute("src"))); };
    document.head.append(script);
  });
}

function currentFilter() {
  return { words: byId("text").value.toLowerCase().split(/\s+/).filter(Boolean), status: byId("status").value, shape: byId("shape").value };
}

function chunkMayMatch(chunk, filter) {
  if (filter.shape && !chunk.shapes.includes(filter.shape)) return false;
  if (filter.status.startsWith("reason:")) return filter.status.slice(7) in chunk.num_by_reason;
  return !filter.status || filter.status in chunk.num_by_status;
}

function rowMatches(row, filter) {
  if (filter.status.startsWith("reason:") ? row.reason !== filter.status.slice(7) : filter.status && row.status !== filter.status) return false;
  if (filter.shape && shapeOf(row) !== filter.shape) return false;
  if (!filter.words.length) return true;
  const text = [row.prompt, row.id, row.negative_prompt].filter((part) => part != null).join("\n").toLowerCase();
  return filter.words.every((word) => text.includes(word));
}

// Finds matches until there are enough for a page, or no more chunks.
async function findMatches(wanted, isCurrent) {
  while (search.matches.length < wanted && search.nextChunk < index.chunks.length) {
    const numbers = [];
    let next = search.nextChunk;
    for (; next < index.chunks.length && numbers.length < CHUNKS_AT_ONCE; next++) {
      if (chunkMayMatch(index.chunks[next], search.filter)) numbers.push(next);
    }
    byId("found").textContent = "searching, " + percent(search.nextChunk / index.chunks.length);
    const loaded = await Promise.all(numbers.map(loadChunk));
    if (!isCurrent()) return;
    loaded.forEach((rows, of) => rows.forEach((row, at) => {
      if (rowMatches(row, search.filter)) search.matches.push([numbers[of], at]);
    }));
    search.nextChunk = next;
  }
}

async function show() {
  const mine = ++turn;
  const isCurrent = () => mine === turn;
  const filter = currentFilter();
  if (!search || JSON.stringify(search.filter) !== JSON.stringify(filter)) {
    search = { filter, matches: [], nextChunk: 0 };
    page = 0;
  }
  const isFiltered = Boolean(filter.words.length || filter.status || filter.shape);
  const start = page * CARDS_PER_PAGE;
  let places = [];
  if (!shown.length) tell("Loading…");
  try {
    if (isFiltered) {
      await findMatches(start + CARDS_PER_PAGE + 1, isCurrent);
      if (!isCurrent()) return;
      places = search.matches.slice(start, start + CARDS_PER_PAGE);
    } else {
      places = placesFrom(start);
    }
    const rows = [];
    for (const [chunk, at] of places) rows.push((await loadChunk(chunk))[at]);
    if (!isCurrent()) return;
    shown = rows;
    tell(rows.length ? "" : "No row matches.");
  } catch (error) {
    if (!isCurrent()) return;
    shown = [];
    tell(error.message + ". The folder _gallery must lie beside this page.");
  }
  byId("grid").replaceChildren(...shown.map(card));
  const isComplete = !isFiltered || search.nextChunk >= index.chunks.length;
  const total = isFiltered ? search.matches.length : index.num_rows;
  byId("found").textContent = isFiltered ? grouped(total) + (isComplete ? "" : "+") + (total === 1 ? " match" : " matches") : "";
  const numPages = Math.max(1, Math.ceil(total / CARDS_PER_PAGE));
  byId("position").textContent = "page " + grouped(page + 1) + " of " + grouped(numPages) + (isComplete ? "" : "+");
  byId("previous").disabled = page === 0;
  byId("next").disabled = start + CARDS_PER_PAGE >= total;
}

function placesFrom(start) {
  const places = [];
  for (let row = start; row < Math.min(start + CARDS_PER_PAGE, index.num_rows); row++) {
    let chunk = firstRows.length - 1;
    while (firstRows[chunk] > row) chunk--;
    places.push([chunk, row - firstRows[chunk]]);
  }
  return places;
}

function card(row, at) {
  const failed = row.status !== "ok";
  const button = element("button", failed ? "card failed" : "card");
  button.type = "button";
  const frame = element("div", "frame");
  frame.append(...(failed ? failure(row) : [picture(row)]));
  const words = element("div", "words");
  words.append(element("div", "text", row.prompt == null ? "(no prompt)" : row.prompt), element("div", "meta", metaOf(row)));
  button.append(frame, words);
  button.addEventListener("click", () => open(at));
  return button;
}

function failure(row) {
  return [element("b", "", row.reason || "failed"), element("span", "", row.detail || "")];
}

function picture(row) {
  if (!row._image) return element("div", "none", row.path || "no picture");
  const image = element("img");
  image.loading = "lazy";
  image.decoding = "async";
  image.alt = row.prompt || "";
  image.src = urlOf(row._image);
  image.addEventListener("error", () => image.replaceWith(element("div", "none", "missing: " + row._image)));
  return image;
}

function open(at) {
  opened = at;
  const row = shown[at];
  const failed = row.status !== "ok";
  byId("picture").className = failed ? "picture failure" : "picture";
  byId("full").replaceChildren(...(failed ? failure(row) : [picture(row)]));
  if (!failed && row._image) byId("full").href = urlOf(row._image);
  else byId("full").removeAttribute("href");
  byId("prompt").textContent = row.prompt == null ? "(no prompt)" : row.prompt;
  const names = [...FIRST_COLUMNS.filter((name) => name in row), ...Object.keys(row).filter((name) => !FIRST_COLUMNS.includes(name))];
  byId("values").replaceChildren(...names.filter((name) => name !== "prompt" && name !== "_image" && row[name] !== null).map((name) => {
    const line = element("tr", failed && (name === "reason" || name === "detail") ? "bad" : "");
    line.append(element("th", "", name), element("td", "", String(row[name])));
    return line;
  }));
  byId("earlier").disabled = at === 0;
  byId("later").disabled = at === shown.length - 1;
  if (!byId("details").open) byId("details").showModal();
}

function step(by) {
  if (byId("details").open && shown[opened + by]) open(opened + by);
}

function turnPage(by) {
  page += by;
  show().then(() => window.scrollTo({ top: 0 }));
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function fill(select, options) {
  select.append(...options.map(([value, label]) => { const option = element("option", "", label); option.value = value; return option; }));
}

function shapeOf(row) { return row.height && row.width ? row.height + " × " + row.width : ""; }
function metaOf(row) {
  return [shapeOf(row), row.steps == null ? "" : row.steps + " steps", row.seed == null ? "" : "seed " + row.seed].filter(Boolean).join(" · ");
}
function urlOf(path) { return path.split("/").map(encodeURIComponent).join("/"); }
function grouped(number) { return number.toLocaleString("en"); }
function percent(share) { return Math.round(share * 100) + " %"; }
function tell(text) { byId("message").textContent = text; byId("message").hidden = !text; }

const reasons = Object.entries(index.num_by_reason).sort((a, b) => b[1] - a[1]);
fill(byId("status"), [
  ["", "All rows"],
  ...Object.entries(index.num_by_status).map(([status, count]) => [status, status + " (" + grouped(count) + ")"]),
  ...reasons.map(([reason, count]) => ["reason:" + reason, "failed: " + reason + " (" + grouped(count) + ")"]),
]);
fill(byId("shape"), [["", "All shapes"], ...index.shapes.map((shape) => [shape, shape + " px"])]);
if (index.num_rows < index.num_rows_in_all) {
  byId("counts").textContent += " · here: " + grouped(index.num_rows) + " rows, spread evenly over " + grouped(index.num_rows_in_all);
}

let typing = 0;
byId("text").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(show, 200); });
byId("status").addEventListener("change", show);
byId("shape").addEventListener("change", show);
byId("filters").addEventListener("submit", (event) => { event.preventDefault(); show(); });
byId("previous").addEventListener("click", () => turnPage(-1));
byId("next").addEventListener("click", () => turnPage(1));
byId("close").addEventListener("click", () => byId("details").close());
byId("earlier").addEventListener("click", () => step(-1));
byId("later").addEventListener("click", () => step(1));
byId("details").addEventListener("click", (event) => { if (event.target === byId("details")) byId("details").close(); });
document.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
show();
