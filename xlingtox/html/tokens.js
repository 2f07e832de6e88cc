const page = JSON.parse(document.getElementById("page-data").textContent);
const chosen = document.getElementById("neuron");
function draw() {
  const at = Number(chosen.value);
  document.getElementById("limit").textContent = `±${page.limits[at].toFixed(2)}`;
  for (const [i, text] of page.texts.entries()) {
    const old = document.getElementById(`text-${i}`);
    const fresh = old.cloneNode(false);
    old.replaceWith(fresh);
    CircuitsVis.render(fresh.id, CircuitsVis.ColoredTokens, {
      tokens: text.tokens,
      values: text.values.map((row) => row[at]),
      minValue: -page.limits[at],
      maxValue: page.limits[at],
      negativeColor: page.negative,
      positiveColor: page.positive,
    });
  }
}
chosen.addEventListener("change", draw);
draw();
