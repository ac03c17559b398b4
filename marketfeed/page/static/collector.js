// The collector's page: tiles, chart and panels, live.

import { Chart } from "./chart.js";
import { listen } from "./live.js";
import { Panels, showCollector } from "./panels.js";
import { put, time } from "./text.js";
import { commonEnd, legend, SILENT, STATES, Tiles } from "./tiles.js";

const element = (id) => document.getElementById(id);
const timeframe = element("timeframe");
const panels = new Panels(element("panels"));
const chart = new Chart({
  canvas: element("canvas"),
  values: element("chart-values"),
  problem: element("chart-problem"),
  rows: element("rows"),
});
const tiles = new Tiles(element("tiles"), element("find"), element("troubled"), () => draw());
let version = null;

function draw() {
  put(element("chart-title"), `${tiles.chosen} ${timeframe.value}`);
  const place = new URLSearchParams({ pair: tiles.chosen, timeframe: timeframe.value });
  history.replaceState(null, "", `#${place}`);
  chart.choose(tiles.chosen, timeframe.value);
}

function seldom(told) {
  // After an upgrade: a page must not be older than the service that it speaks to.
  if (version !== null && version !== told.version) location.reload();
  version = told.version;
  const wanted = new URLSearchParams(location.hash.slice(1));
  const chosen = timeframe.value || wanted.get("timeframe");
  timeframe.replaceChildren(...told.timeframes.map((name) => new Option(name, name)));
  if (told.timeframes.includes(chosen)) timeframe.value = chosen;
  tiles.setPairs(told.pairs);
  put(element("pairs-end"), commonEnd(told.pairs).slice(1));
  if (told.pairs.length && !told.pairs.includes(tiles.chosen)) {
    const pair = wanted.get("pair");
    tiles.choose(told.pairs.includes(pair) ? pair : told.pairs[0]);
  }
}

function headline(status, silent) {
  const problems = status.reasons.length;
  const line = element("headline");
  line.className = `headline ${problems ? "bad" : "good"}`;
  put(line, problems ? `✕ Not well: ${problems} ${problems > 1 ? "reasons" : "reason"}` : "● All is well");
  document.title = problems ? `✕ ${silent ? `${silent} silent` : "not well"} – Marketfeed` : "● Marketfeed";
  const list = element("reasons");
  list.hidden = problems === 0;
  while (list.children.length > problems) list.lastChild.remove();
  while (list.children.length < problems) list.append(document.createElement("li"));
  status.reasons.forEach((reason, index) => put(list.children[index], reason));
}

function now(told) {
  const { status } = told;
  tiles.show(told.tiles);
  const counts = tiles.counts();
  put(
    element("pairs-count"),
    counts.map((number, state) => (number ? `${number} ${STATES[state].name}` : "")).filter(Boolean).join(", "),
  );
  headline(status, counts[SILENT]);
  put(element("clock"), `${time(status.exchange_time_ms)} UTC`);
  showCollector(panels, told);
  chart.turn();
}

timeframe.addEventListener("change", () => tiles.chosen && draw());
legend(element("legend"));
listen(
  "/events",
  ["seldom", "now"],
  (name, told) => (name === "seldom" ? seldom(told) : now(told)),
  (state) => {
    document.body.dataset.live = state;
    if (state === "live") return;
    const lost = new Date();
    const line = element("headline");
    line.className = "headline bad";
    put(line, `✕ The collector is not heard since ${lost.toISOString().slice(11, 19)} UTC: what stands here is old`);
    document.title = "✕ not heard – Marketfeed";
  },
);
