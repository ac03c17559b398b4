// The candles of one series as the journal has them, with mark price and funding.

import { count, digitsOf, percent, price, put, time } from "./text.js";

const ALL = 300;
const TAIL = 3;
const TAIL_EVERY_MS = 2000;
const ALL_EVERY_MS = 60000; // what was corrected shows, and what a restart brought
const HOLES_EVERY_MS = 5000; // while some are missing: healed ones show soon
const [OPEN_MS, OPEN, HIGH, LOW, CLOSE, VOLUME, MARK, RATE] = [0, 1, 2, 3, 4, 5, 6, 7];
const ROWS = 10;

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

export class Chart {
  constructor(parts) {
    this.parts = parts; // canvas, values, problem, rows
    this.series = "";
    this.rows = [];
    this.forming = null;
    this.settled = [];
    this.asked = null; // the question under way
    this.askedMs = 0;
    this.allMs = 0;
    this.chart = LightweightCharts.createChart(parts.canvas, {
      autoSize: true,
      // The library's logo needs a style of its own in the page, which the policy forbids: the footer names it.
      layout: { attributionLogo: false, fontFamily: "system-ui, sans-serif" },
      timeScale: { timeVisible: true, secondsVisible: false },
      crosshair: { mode: LightweightCharts.CrosshairMode.Normal },
      handleScroll: { vertTouchDrag: false },
    });
    const quiet = { lastValueVisible: true, priceLineVisible: false, crosshairMarkerVisible: false };
    this.candles = this.chart.addSeries(LightweightCharts.CandlestickSeries, {});
    this.mark = this.chart.addSeries(LightweightCharts.LineSeries, { ...quiet, lineWidth: 2, lineStyle: 1 });
    const asPercent = {
      priceFormat: { type: "custom", formatter: (value) => value.toFixed(4), minMove: 0.0001 },
    };
    this.funded = this.chart.addSeries(LightweightCharts.HistogramSeries, { ...quiet, ...asPercent, lastValueVisible: false }, 1);
    this.rate = this.chart.addSeries(LightweightCharts.LineSeries, { ...quiet, ...asPercent, lineWidth: 2 }, 1);
    this.chart.panes()[0].setStretchFactor(3);
    this.chart.panes()[1].setStretchFactor(1);
    this.dress();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.dress());
  }

  dress() {
    const edge = colour("edge");
    this.chart.applyOptions({
      layout: {
        background: { color: colour("card") },
        textColor: colour("ink"),
        panes: { separatorColor: edge },
      },
      grid: { vertLines: { color: edge }, horzLines: { color: edge } },
      rightPriceScale: { borderColor: edge },
      timeScale: { borderColor: edge },
    });
    const [up, down] = [colour("up"), colour("down")];
    this.candles.applyOptions({
      upColor: up, downColor: down, wickUpColor: up, wickDownColor: down, borderVisible: false,
    });
    this.mark.applyOptions({ color: colour("mark") });
    this.rate.applyOptions({ color: colour("rate") });
    this.funded.applyOptions({ color: colour("settled") });
  }

  // Show another series from now on.
  choose(pair, timeframe) {
    this.pair = pair;
    this.timeframe = timeframe;
    this.asked?.abort();
    this.asked = null;
    this.rows = [];
    this.forming = null;
    this.settled = [];
    this.draw(true);
    put(this.parts.values, "");
    this.ask(ALL);
  }

  // Called with every event: looks for what is new, if it is time for that and somebody can see it.
  turn() {
    const now = performance.now();
    if (!this.pair || this.asked || document.hidden || now - this.askedMs < TAIL_EVERY_MS) return;
    const allEvery = this.holes() ? HOLES_EVERY_MS : ALL_EVERY_MS;
    this.ask(this.rows.length === 0 || now - this.allMs > allEvery ? ALL : TAIL);
  }

  async ask(limit) {
    const asked = new AbortController();
    this.asked = asked;
    this.askedMs = performance.now();
    const question = new URLSearchParams({ pair: this.pair, timeframe: this.timeframe, limit });
    try {
      const signal = AbortSignal.any([asked.signal, AbortSignal.timeout(10000)]);
      const answer = await fetch(`/candles?${question}`, { signal });
      const body = await answer.json();
      if (this.asked !== asked) return; // another series has been chosen
      if (answer.ok) this.take(body, limit);
      else this.problem(body.error);
    } catch (error) {
      if (this.asked === asked) this.problem("the candles cannot be read now");
    } finally {
      if (this.asked === asked) this.asked = null;
    }
  }

  problem(text) {
    put(this.parts.problem, text);
    this.parts.problem.hidden = text === "";
  }

  take(body, limit) {
    const fresh = this.rows.length === 0;
    this.problem("");
    this.length = body.length_ms;
    if (limit === ALL) {
      this.rows = body.candles;
      this.settled = body.settled;
      this.allMs = performance.now();
    } else {
      const first = body.candles[0]?.[OPEN_MS] ?? Infinity;
      const last = this.rows.at(-1)[OPEN_MS];
      // More has come than the tail holds: all of it is asked for with the next event.
      if (first > last + this.length) this.allMs = -Infinity;
      this.rows = [...this.rows.filter((row) => row[OPEN_MS] < first), ...body.candles].slice(-ALL);
      const start = body.settled[0]?.[0] ?? Infinity;
      this.settled = [...this.settled.filter(([at]) => at < start), ...body.settled];
    }
    this.forming = body.forming;
    this.draw(fresh);
    this.describe();
  }

  // Whether some candles between the first and the last are missing.
  holes() {
    const [first, last] = [this.rows[0], this.rows.at(-1)];
    return this.rows.length > 0 && (last[OPEN_MS] - first[OPEN_MS]) / this.length >= this.rows.length;
  }

  all() {
    const last = this.rows.at(-1)?.[OPEN_MS] ?? -1;
    return this.forming && this.forming[OPEN_MS] > last ? [...this.rows, this.forming] : this.rows;
  }

  draw(fresh) {
    const rows = this.all();
    const candles = [];
    let due = null;
    for (const row of rows) {
      // What is missing is left blank, so that it can be seen.
      for (let blanks = 0; due !== null && due < row[OPEN_MS] && blanks < ALL; due += this.length, blanks += 1) {
        candles.push({ time: due / 1000 });
      }
      candles.push({ time: row[OPEN_MS] / 1000, open: row[OPEN], high: row[HIGH], low: row[LOW], close: row[CLOSE] });
      due = row[OPEN_MS] + this.length;
    }
    const points = (index, factor) =>
      rows
        .filter((row) => row[index] !== null)
        .map((row) => ({ time: row[OPEN_MS] / 1000, value: row[index] * factor }));
    this.digits = digitsOf(rows.map((row) => row[LOW]));
    const priceFormat = { type: "price", precision: this.digits, minMove: 10 ** -this.digits };
    this.candles.applyOptions({ priceFormat });
    this.mark.applyOptions({ priceFormat });
    this.candles.setData(candles);
    this.mark.setData(points(MARK, 1));
    this.rate.setData(points(RATE, 100));
    const settled = new Map();
    for (const [at, rate] of this.settled) {
      const open = Math.floor(at / this.length) * this.length;
      settled.set(open, { time: open / 1000, value: rate * 100 });
    }
    this.funded.setData([...settled.values()]);
    if (fresh) {
      // As many as can be distinguished: the last ones on a narrow screen.
      const fit = Math.min(rows.length, Math.max(20, Math.floor(this.parts.canvas.clientWidth / 7)));
      this.chart.timeScale().setVisibleLogicalRange({ from: candles.length - fit - 1, to: candles.length + 2 });
    }
  }

  describe() {
    const rows = this.all();
    const last = rows.at(-1);
    if (!last) {
      put(this.parts.values, "No candles of this series yet.");
      this.parts.rows.replaceChildren();
      return;
    }
    const at = (index) => price(last[index], this.digits);
    const marked = rows.findLast((row) => row[MARK] !== null)?.[MARK];
    const rate = rows.findLast((row) => row[RATE] !== null)?.[RATE];
    put(
      this.parts.values,
      `${last === this.forming ? "Forming" : "Closed"} ${time(last[OPEN_MS]).slice(11, 16)} UTC: ` +
        `open ${at(OPEN)}, high ${at(HIGH)}, low ${at(LOW)}, close ${at(CLOSE)}, volume ${count(last[VOLUME])}; ` +
        `mark price ${price(marked, this.digits)}, funding ${percent(rate)}`,
    );
    const cells = rows.slice(-ROWS).reverse().map((row) => [
      time(row[OPEN_MS]).slice(0, 16) + (row === this.forming ? " forming" : ""),
      ...[OPEN, HIGH, LOW, CLOSE].map((index) => price(row[index], this.digits)),
      count(row[VOLUME]),
      price(row[MARK], this.digits),
      percent(row[RATE]),
    ]);
    this.parts.rows.replaceChildren(
      ...cells.map((texts) => {
        const line = document.createElement("tr");
        line.append(
          ...texts.map((text) => {
            const cell = document.createElement("td");
            cell.textContent = text;
            return cell;
          }),
        );
        return line;
      }),
    );
  }
}
