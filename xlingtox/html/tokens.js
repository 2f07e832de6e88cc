const held = JSON.parse(document.getElementById("held").textContent);
const chosen = document.getElementById("neuron");
function draw() {
  const at = Number(chosen.value);
  document.getElementById("limit").textContent = `±${held.limits[at].toFixed(2)}`;
  for (const [i, text] of held.texts.entries()) {
    const old = document.getElementById(`text-${i}`);
    const fresh = old.cloneNode(false);
    old.replaceWith(fresh);
    CircuitsVis.render(fresh.id, CircuitsVis.ColoredTokens, {
      tokens: text.tokens,
      values: text.values.map((row) => row[at]),
      minValue: -held.limits[at],
      maxValue: held.limits[at],
      negativeColor: held.negative,
      positiveColor: held.positive,
    });
  }
}
chosen.addEventListener("change", draw);
draw();
