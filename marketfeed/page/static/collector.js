// The collector's page: tiles, chart and panels, live.

import { Chart } from "./chart.js";
import { follow, headline } from "./live.js";
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

function draw() {
  put(element("chart-title"), `${tiles.chosen} ${timeframe.value}`);
  const place = new URLSearchParams({ pair: tiles.chosen, timeframe: timeframe.value });
  history.replaceState(null, "", `#${place}`);
  chart.choose(tiles.chosen, timeframe.value);
}

function seldom(event) {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const chosen = timeframe.value || wanted.get("timeframe");
  timeframe.replaceChildren(...event.timeframes.map((name) => new Option(name, name)));
  if (event.timeframes.includes(chosen)) timeframe.value = chosen;
  tiles.setPairs(event.pairs);
  put(element("pairs-end"), commonEnd(event.pairs).slice(1));
  if (event.pairs.length && !event.pairs.includes(tiles.chosen)) {
    const pair = wanted.get("pair");
    tiles.choose(event.pairs.includes(pair) ? pair : event.pairs[0]);
  }
}

function now(event) {
  const { status } = event;
  tiles.show(event.tiles);
  const counts = tiles.counts();
  put(
    element("pairs-count"),
    counts.map((number, state) => (number ? `${number} ${STATES[state].name}` : "")).filter(Boolean).join(", "),
  );
  headline(status, "Marketfeed", counts[SILENT] ? `${counts[SILENT]} silent` : undefined);
  put(element("clock"), `${time(status.exchange_time_ms)} UTC`);
  showCollector(panels, event);
  chart.turn();
}

timeframe.addEventListener("change", () => tiles.chosen && draw());
legend(element("legend"));
follow(seldom, now, "Marketfeed");
