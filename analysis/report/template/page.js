// Joins the page to its libraries: each table to DataTables, each chart to Plotly when it is seen.

const dark = matchMedia("(prefers-color-scheme: dark)");
const paint = () => document.documentElement.classList.toggle("dark", dark.matches);
dark.addEventListener("change", paint);
paint();

for (const table of document.querySelectorAll("table.sorted")) {
  const rows = table.tBodies[0].rows.length;
  const long = rows > 15;
  const filtered = rows > 8; // fewer are seen at a glance
  new DataTable(table, {
    order: [], // as written, until a reader sorts
    autoWidth: false,
    paging: long,
    pageLength: 15,
    lengthMenu: [15, 50, 200, { label: "all", value: -1 }],
    columnDefs: filtered ? [{ targets: "words", columnControl: ["searchDropdown"] }] : [],
    layout: {
      topStart: long ? "pageLength" : null,
      topEnd: filtered ? "search" : null,
      bottomStart: filtered ? "info" : null,
      bottomEnd: long ? "paging" : null,
    },
  });
}

const LAYOUT = {
  paper_bgcolor: "rgba(0,0,0,0)",
  plot_bgcolor: "rgba(0,0,0,0)",
  font: { family: "system-ui, sans-serif", size: 13 },
  margin: { l: 58, r: 12, t: 12, b: 48 },
  hovermode: "closest",
  hoverlabel: { align: "left", font: { family: "system-ui, sans-serif" } },
  dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // a finger scrolls the page
  legend: { orientation: "h", y: -0.22, yanchor: "top", maxheight: 0.4 },
  modebar: { bgcolor: "rgba(0,0,0,0)", color: "#888", activecolor: "#c60" },
};
const AXIS = { zeroline: false, ticks: "outside", automargin: true }; // colours: style.css
const CONFIG = {
  responsive: true,
  displaylogo: false,
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]], // all but "share", which uploads
  plotlyServerURL: "",
};

function draw(chart) {
  const { traces, titles } = JSON.parse(chart.querySelector("script").textContent);
  const picked = Object.fromEntries(new FormData(chart.querySelector("form")));
  const fits = ({ shown }) => Object.entries(shown).every(([name, option]) => picked[name] === option);
  const data = traces.filter(fits).map((trace) => ({ ...trace, x: trace.x[picked.x] }));
  const axis = (name) => ({ ...AXIS, title: { text: titles[picked[name]], font: { size: 13 }, standoff: 8 } });
  const layout = { ...LAYOUT, xaxis: axis("x"), yaxis: axis("measure"), uirevision: picked.task };
  Plotly.react(chart.querySelector(".plot"), data, layout, CONFIG);
}

const seen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (isIntersecting) {
      seen.unobserve(target);
      draw(target);
      target.querySelector("form").addEventListener("change", () => draw(target));
    }
  }
});
for (const chart of document.querySelectorAll(".chart")) seen.observe(chart);
