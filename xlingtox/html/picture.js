const held = JSON.parse(document.getElementById("held").textContent);
for (const [id, figure] of Object.entries(held)) {
  Plotly.newPlot(id, figure.data, figure.layout, {staticPlot: true});
}
