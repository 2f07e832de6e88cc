const held = JSON.parse(document.getElementById("held").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const boxes = [...document.querySelectorAll("input[name=language]")];
let style = dark.matches ? "dark" : "light";
let chosen = new Set(boxes.map((box) => box.value));

// A point belongs to the language that stands first in its customdata; a row of a heat map likewise.
function part(trace) {
  const own = trace.customdata?.map((point) => held.languages[[point[0]].flat()[0]]);
  if (trace.meta?.by_language && chosen.size < boxes.length) {
    const rows = [...chosen].map((code) => trace.meta.by_language[code]).filter(Boolean);
    // A number that is missing leaves a gap.
    const y = trace.x.map((_, i) => {
      const own = rows.map((row) => row[i]);
      return own.length === 0 || own.includes(null) ? null : own.reduce((sum, value) => sum + value) / own.length;
    });
    return {...trace, y, text: ""};
  }
  if (!own?.some(Boolean)) return trace;
  const keep = (list) => Array.isArray(list) ? list.filter((_, i) => chosen.has(own[i])) : list;
  const kept = {...trace};
  const lists = trace.type === "heatmap" ? ["y", "z", "customdata"] : ["x", "y", "text", "textposition", "customdata"];
  for (const name of lists) kept[name] = keep(trace[name]);
  for (const name of ["error_x", "error_y"]) {
    const bar = trace[name];
    if (bar) kept[name] = {...bar, array: keep(bar.array), arrayminus: keep(bar.arrayminus)};
  }
  return kept;
}

function draw() {
  const all = chosen.size === boxes.length;
  for (const [id, figure] of Object.entries(held.figures)) {
    const below = figure.layout.title.subtitle ?? {text: ""};
    const layout = {...figure.layout, template: held.styles[style], title: {...below, x: 0, xref: "paper", y: 0.98}};
    layout.margin = {...layout.margin, t: below.text ? 80 : 56};
    layout.dragmode = false;
    const order = layout.xaxis.categoryarray;
    if (order) layout.xaxis = {...layout.xaxis, categoryarray: order.filter((code) => chosen.has(code))};
    // The band is of the mean over all languages.
    const averaged = figure.data.some((trace) => trace.meta?.by_language);
    const data = figure.data.filter((trace) => all || !averaged || trace.fill !== "toself").map(part);
    Plotly.react(id, data, layout, {responsive: true, displayModeBar: false});
    note(id, all, data);
  }
}

function note(id, all, data) {
  const place = document.getElementById(id.replace("figure", "note"));
  const lost = data.some((trace) => trace.customdata?.length === 0);
  const said = [lost ? "None of the chosen languages has a place in this figure." : "", held.notes[id] ?? ""];
  place.textContent = said.filter(Boolean).join(" ");
  place.hidden = all || !place.textContent;
}

function choose() {
  const ticked = boxes.filter((box) => box.checked).map((box) => box.value);
  chosen = new Set(ticked.length ? ticked : boxes.map((box) => box.value));
  const said = ticked.length === boxes.length ? `all ${boxes.length}` : `${ticked.length} of ${boxes.length}`;
  document.getElementById("shown").textContent = ticked.length ? said : "none chosen, so all are shown";
  for (const part of document.querySelectorAll("[data-language]")) part.hidden = !chosen.has(part.dataset.language);
  draw();
}

function tick(value) {
  for (const box of boxes) box.checked = value;
  choose();
}

const unmask = document.getElementById("unmask");
unmask.addEventListener("click", () => {
  const show = unmask.dataset.shown === "false";
  unmask.dataset.shown = String(show);
  unmask.textContent = show ? "Hide toxic words" : "Show toxic words";
  for (const word of document.querySelectorAll(".masked")) {
    [word.textContent, word.dataset.text] = [word.dataset.text, word.textContent];
  }
});
for (const box of boxes) box.addEventListener("change", choose);
document.getElementById("all").addEventListener("click", () => tick(true));
document.getElementById("none").addEventListener("click", () => tick(false));
function restyle(name) {
  style = name;
  draw();
}
const followPage = () => restyle(dark.matches ? "dark" : "light");
dark.addEventListener("change", followPage);
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const part of folded) part.open = true;
  restyle("light");
});
addEventListener("afterprint", () => {
  for (const part of folded) part.open = false;
  followPage();
});
draw();
