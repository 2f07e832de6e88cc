const page = JSON.parse(document.getElementById("page-data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const boxes = [...document.querySelectorAll("input[name=language]")];
let style = dark.matches ? "dark" : "light";
let chosen = new Set(boxes.map((box) => box.value));

// Each point, and each row of a heat map, belongs to the language that stands first in its customdata.
function part(trace) {
  const codes = trace.customdata?.map((point) => page.languages[[point[0]].flat()[0]]);
  if (trace.meta?.by_language && chosen.size < boxes.length) {
    const rows = [...chosen].map((code) => trace.meta.by_language[code]).filter(Boolean);
    // A missing number leaves a gap.
    const y = trace.x.map((_, i) => {
      const values = rows.map((row) => row[i]);
      const missing = values.length === 0 || values.includes(null);
      return missing ? null : values.reduce((sum, value) => sum + value) / values.length;
    });
    return {...trace, y, text: ""};
  }
  if (!codes?.some(Boolean)) return trace;
  const keep = (list) => Array.isArray(list) ? list.filter((_, i) => chosen.has(codes[i])) : list;
  const filtered = {...trace};
  const lists = trace.type === "heatmap" ? ["y", "z", "customdata"] : ["x", "y", "text", "textposition", "customdata"];
  for (const name of lists) filtered[name] = keep(trace[name]);
  for (const name of ["error_x", "error_y"]) {
    const bar = trace[name];
    if (bar) filtered[name] = {...bar, array: keep(bar.array), arrayminus: keep(bar.arrayminus)};
  }
  return filtered;
}

function draw() {
  const all = chosen.size === boxes.length;
  for (const [id, figure] of Object.entries(page.figures)) {
    const below = figure.layout.title.subtitle ?? {text: ""};
    const layout = {...figure.layout, template: page.styles[style], title: {...below, x: 0, xref: "paper", y: 0.98}};
    layout.margin = {...layout.margin, t: below.text ? 80 : 56};
    layout.dragmode = false;
    for (const axis of Object.keys(layout).filter((name) => name.startsWith("xaxis"))) {
      const order = layout[axis].categoryarray;
      if (order) layout[axis] = {...layout[axis], categoryarray: order.filter((code) => chosen.has(code))};
    }
    // A filled band belongs to the mean over all languages, so it is left out where some are hidden.
    const averaged = figure.data.some((trace) => trace.meta?.by_language);
    const data = figure.data.filter((trace) => all || !averaged || trace.fill !== "toself").map(part);
    Plotly.react(id, data, layout, {responsive: true, displayModeBar: false});
    note(id, all, data);
  }
}

function note(id, all, data) {
  const place = document.getElementById(id.replace("figure", "note"));
  const lost = data.some((trace) => trace.customdata?.length === 0);
  const sentences = [lost ? "None of the chosen languages has a place in this figure." : "", page.notes[id] ?? ""];
  place.textContent = sentences.filter(Boolean).join(" ");
  place.hidden = all || !place.textContent;
}

function choose() {
  const ticked = boxes.filter((box) => box.checked).map((box) => box.value);
  chosen = new Set(ticked.length ? ticked : boxes.map((box) => box.value));
  const count = ticked.length === boxes.length ? `all ${boxes.length}` : `${ticked.length} of ${boxes.length}`;
  document.getElementById("shown").textContent = ticked.length ? count : "none chosen, so all are shown";
  for (const part of document.querySelectorAll("[data-language]")) part.hidden = !chosen.has(part.dataset.language);
  draw();
}

function tick(value) {
  for (const box of boxes) box.checked = value;
  choose();
}

const unmask = document.getElementById("unmask");
unmask?.addEventListener("click", () => {
  const show = unmask.dataset.shown === "false";
  unmask.dataset.shown = String(show);
  unmask.textContent = show ? "Hide toxic words" : "Show toxic words";
  for (const word of document.querySelectorAll(".masked")) {
    [word.textContent, word.dataset.text] = [word.dataset.text, word.textContent];
  }
});
for (const box of boxes) box.addEventListener("change", choose);
document.getElementById("all")?.addEventListener("click", () => tick(true));
document.getElementById("none")?.addEventListener("click", () => tick(false));
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
