"use strict";
/* Text of traces and names of teachers are data: they reach the page through textContent, never as markup. */
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const root = document.documentElement;
const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
const drawn = new Set();

/* Figures: drawn when they come near the window, and the library is compiled when the first of them is: a page opens
   with its words and tables, whatever there is to plot. */
function library() {
  const source = document.getElementById("plotly");
  if (!source) return;
  const script = document.createElement("script");
  script.textContent = source.textContent;
  source.remove();
  document.head.append(script);
}
function draw(box) {
  library();
  const figure = FIGURES[box.id];
  const layout = structuredClone(figure.layout);
  const narrow = box.clientWidth < 560;
  Object.assign(layout, {
    paper_bgcolor: css("--ground"), plot_bgcolor: css("--ground"), font: { color: css("--ink"), size: narrow ? 10 : 12 },
    hoverlabel: { font: { size: 12 } },
  });
  layout.legend = Object.assign({ orientation: narrow ? "h" : "v" }, narrow ? { y: -0.25 } : {}, layout.legend);
  layout.showlegend = layout.showlegend !== false && !(narrow && figure.data.length > 8);
  for (const name of Object.keys(layout).filter((key) => /^[xy]axis/.test(key)).concat("xaxis", "yaxis")) {
    const axis = Object.assign({}, layout[name]);
    layout[name] = Object.assign(axis, { gridcolor: css("--line"), zerolinecolor: css("--line"), automargin: true });
    if (narrow && figure.manyLabels) layout[name].tickfont = { size: 7 };
  }
  Plotly.react(box, figure.data, layout, { responsive: true, displaylogo: false, displayModeBar: narrow ? false : "hover" });
  drawn.add(box);
}
const FIGURES = read("figures");
const near = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) { near.unobserve(entry.target); draw(entry.target); }
}, { rootMargin: "300px" });
addEventListener("load", () => setTimeout(() => document.querySelectorAll(".plot").forEach((box) => near.observe(box))));

/* Light and dark. */
const toggle = document.getElementById("theme");
const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
function changed() {
  toggle.textContent = isDark() ? "light" : "dark";
  drawn.forEach(draw);
  show();
}
toggle.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; changed(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);

/* Tables: a click on a head sorts, another one turns it round. Cells without data stay at the end. */
for (const button of document.querySelectorAll("thead th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, body = head.closest("table").tBodies[0];
    const column = [...head.parentElement.children].indexOf(head);
    const order = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
    const first = head.dataset.text === undefined ? order : -order;
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", first > 0 ? "ascending" : "descending");
    const key = (row) => row.children[column].dataset.value ?? row.children[column].textContent;
    const compare = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const [m, n] = [Number(x), Number(y)];
      return first * (Number.isNaN(m) || Number.isNaN(n) ? x.localeCompare(y) : m - n);
    };
    body.append(...[...body.rows].sort(compare));
  });
}

/* Trace viewer. */
const TRACES = read("traces");
const viewer = document.getElementById("viewer");
let current = 0;
function shade(value, low, high, color) {
  if (value === null || value === undefined || !(high > low)) return "";
  const share = Math.min(Math.max((value - low) / (high - low), 0), 1);
  return share < 0.03 ? "" : `rgba(${color}, ${(0.75 * share).toFixed(2)})`;
}
function show() {
  if (!TRACES.length) return;
  const trace = TRACES[current], kind = document.getElementById("shading").value;
  const values = trace[kind] || [], known = values.filter((v) => v !== null).sort((a, b) => a - b);
  const at = (q) => known[Math.min(Math.floor(q * known.length), known.length - 1)];
  const range = kind === "surprisal" ? [0, 6] : [at(0.9), at(0.05)]; // confidence: the less sure, the darker
  document.getElementById("about-trace").textContent =
    `${current + 1} of ${TRACES.length}: ${trace.teacher}, problem ${trace.problem}, ${trace.verdict}` +
    (known.length ? "" : "; not scored, so there is no shading");
  const place = document.getElementById("trace");
  place.replaceChildren();
  const prompt = document.createElement("span");
  prompt.className = "prompt";
  prompt.textContent = trace.prompt + "\n\n";
  place.append(prompt);
  let step = null, closed = null, parent = place;
  const masked = new Set(trace.masked);
  trace.tokens.forEach((text, i) => {
    if (trace.step[i] !== step || masked.has(i) !== closed) {
      step = trace.step[i];
      closed = masked.has(i);
      parent = document.createElement(closed ? "s" : "span");
      parent.dataset.step = step;
      if (closed) parent.title = "masked";
      place.append(parent);
    }
    const token = document.createElement("span");
    token.textContent = text;
    const value = values[i];
    if (value !== null && value !== undefined) {
      token.title = `${value.toFixed(2)} nats`;
      token.style.backgroundColor = kind === "surprisal"
        ? shade(value, ...range, css("--heat")) : shade(-value, -range[0], -range[1], css("--calm"));
    }
    parent.append(token);
  });
  document.getElementById("pick").value = String(current);
}
function go(to) {
  current = (to + TRACES.length) % TRACES.length;
  show();
}
if (viewer) {
  document.getElementById("pick").addEventListener("change", (event) => go(Number(event.target.value)));
  document.getElementById("shading").addEventListener("change", show);
  document.getElementById("before").addEventListener("click", () => go(current - 1));
  document.getElementById("next").addEventListener("click", () => go(current + 1));
  viewer.addEventListener("keydown", (event) => {
    if (event.target.tagName === "SELECT") return;
    if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
      go(current + (event.key === "ArrowRight" ? 1 : -1));
      event.preventDefault();
    }
  });
}
changed();
root.dataset.ready = "yes";
