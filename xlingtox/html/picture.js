const page = JSON.parse(document.getElementById("page-data").textContent);
for (const [id, figure] of Object.entries(page)) {
  Plotly.newPlot(id, figure.data, figure.layout, {staticPlot: true});
}
