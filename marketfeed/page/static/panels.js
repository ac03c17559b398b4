// Panels of figures, each a heading and a list of names and values.

import { bytes, count, put, seconds, time } from "./text.js";

export class Panels {
  constructor(home) {
    this.home = home;
    this.panels = new Map();
  }

  // `rows` are [name, value, class], the class "bad", "warn" or absent.
  show(title, rows) {
    let panel = this.panels.get(title);
    if (!panel) {
      const section = document.createElement("section");
      const heading = document.createElement("h2");
      heading.id = `panel-${this.panels.size}`;
      heading.textContent = title;
      section.setAttribute("aria-labelledby", heading.id);
      const list = document.createElement("dl");
      section.append(heading, list);
      this.home.append(section);
      panel = { list, names: "" };
      this.panels.set(title, panel);
    }
    const names = JSON.stringify(rows.map(([name]) => name));
    if (panel.names !== names) {
      panel.names = names;
      panel.list.replaceChildren(
        ...rows.flatMap(([name]) => {
          const term = document.createElement("dt");
          term.textContent = name;
          return [term, document.createElement("dd")];
        }),
      );
    }
    const values = panel.list.querySelectorAll("dd");
    rows.forEach(([, value, kind], index) => {
      put(values[index], value);
      if (values[index].className !== (kind ?? "")) values[index].className = kind ?? "";
    });
  }
}

export function warnIf(condition) {
  return condition ? "warn" : "";
}

export function badIf(condition) {
  return condition ? "bad" : "";
}

const sum = (counts) => Object.values(counts).reduce((total, value) => total + value, 0);

export function shipping(report, none) {
  if (report === null) return [["InfluxDB", none]];
  return [
    ["InfluxDB", report.state, badIf(report.trouble)],
    ...(report.trouble ? [["Trouble", `${report.trouble} (${seconds(report.trouble_for_s)})`, "bad"]] : []),
    ["Unshipped rows", count(report.unshipped), warnIf(report.unshipped > 100000)],
    ["Acknowledged", report.acknowledged_ago_s === null ? "nothing yet" : `${seconds(report.acknowledged_ago_s)} ago`],
    ["Lines shipped", count(report.lines)],
    ["Lines refused since the start", count(report.refused), badIf(report.refused)],
  ];
}

function comparing(report) {
  if (!report) return [];
  return [
    ["Compared with the journal", report.why ? `${report.state}: ${report.why}` : report.state],
    ["Rows it had lost", count(report.lacking), warnIf(report.lacking)],
  ];
}

// A collector's panels.
export function showCollector(panels, { status, close_lag_ms: lag }) {
  const silent = Math.max(0, sum(status.overdue) - sum(status.overdue_of_halted));
  panels.show("Feed", [
    ["Frames a second", count(status.frames_per_s)],
    ["Frames", count(status.frames)],
    ["Streams", count(status.streams)],
    ["Candles after their close", lag === null ? "–" : seconds(lag / 1000)],
    ["Oldest of the newest mark prices", seconds(status.mark_price_age_s)],
    ["Silent series", count(sum(status.overdue)), badIf(silent)],
    ["Frames rejected since the start", count(sum(status.rejects)), warnIf(sum(status.rejects))],
  ]);
  panels.show(
    "Connections",
    status.connections.length === 0
      ? [["None yet", "–"]]
      : status.connections.map((one) => [
          one.name,
          one.state === "open"
            ? `open, ${one.streams} streams, ${one.opened - 1} reconnects`
            : `${one.state}${one.last_error ? `: ${one.last_error}` : ""}`,
          badIf(one.state !== "open"),
        ]),
  );
  const healing = status.healing;
  panels.show("Gaps and healing", [
    ["Pairs with their newest candles", `${count(status.ready_pairs)} of ${count(status.pairs)}`, warnIf(status.ready_pairs < status.pairs)],
    ["Candles missing", count(status.missing_candles), warnIf(status.missing_candles)],
    ["Missing of pairs halted or ended", count(status.missing_of_ended)],
    ["Candles that the exchange does not have", count(status.absent_candles)],
    ...(Object.keys(status.halted).length ? [["Halted, by exchangeInfo", Object.keys(status.halted).join(", "), "warn"]] : []),
    ...(status.perhaps_halted ? [["May be halted, exchangeInfo is awaited", status.perhaps_halted, "warn"]] : []),
    ...(healing === null
      ? [["Healing", "not begun"]]
      : [
          ["Gaps open", count(sum(healing.open_gaps)), warnIf(sum(healing.open_gaps))],
          ["Gaps healed", count(healing.ended.healed ?? 0)],
          ["Gaps that cannot be healed", count(sum(healing.ended) - (healing.ended.healed ?? 0))],
          ["Series to compare", count(healing.rechecks)],
          ...(healing.trouble ? [["Trouble", healing.trouble, "bad"]] : []),
        ]),
    ...(status.settled === null
      ? []
      : [
          ["Funding settlements awaited", count(status.settled.awaited)],
          ...(status.settled.trouble ? [["Trouble with funding", status.settled.trouble, "bad"]] : []),
        ]),
  ]);
  const rest = status.rest;
  panels.show("REST", [
    ["Weight this minute", `${count(rest.weight_used)} of ${count(rest.weight_limit)}`, warnIf(rest.weight_used > 0.9 * rest.weight_limit)],
    ["Funding requests", `${count(rest.funding_used)} of ${count(rest.funding_limit)}`],
    ["Waiting", count(rest.waiting)],
    ["Requests", count(sum(rest.requests))],
    ["Refused", count(sum(rest.refused)), warnIf(sum(rest.refused))],
    ...(rest.stopped_s ? [["Stopped", `${seconds(rest.stopped_s)} more: ${rest.stopped_why}`, "bad"]] : []),
  ]);
  const { history, audit } = status.history ?? { history: null, audit: null };
  panels.show("History and audit", [
    ...(history === null
      ? [["History", "none asked for"]]
      : [
          ["History", history.state, warnIf(history.state === "incomplete")],
          ["Days", count(history.days)],
          ["Pairs done", `${count(history.pairs_done)} of ${count(history.pairs)}`],
          ["Candles to go", `${count(history.candles_left)} of ${count(history.candles)}`],
          ["Time to go", seconds(history.left_s)],
          ...(history.trouble ? [["Trouble", history.trouble, "bad"]] : []),
        ]),
    ...(audit === null
      ? []
      : [
          ["Candles audited since the start", count(audit.audited)],
          ["Missing or different", count(audit.missing + audit.different), warnIf(audit.missing + audit.different)],
          ["Mended", count(audit.mended)],
          ["Not mended", count(audit.unmended.length), badIf(audit.unmended.length)],
        ]),
  ]);
  const journal = status.journal;
  panels.show("Journal and InfluxDB", [
    ["Journal", bytes(journal.bytes_used)],
    ["Records waiting", count(journal.pending), warnIf(journal.pending > 50000)],
    ["Commits failed", count(journal.commit_failures), warnIf(journal.commit_failures)],
    ["Records given up", count(sum(journal.records_given_up)), badIf(sum(journal.records_given_up))],
    ["Rejected frames kept", count(journal.rejected_frames), warnIf(journal.rejected_frames)],
    ["Refused lines kept", count(journal.refused_lines), warnIf(journal.refused_lines)],
    ...(journal.set_aside ? [["Set aside as damaged", journal.set_aside, "warn"]] : []),
    ...shipping(status.shipping, "none: the journal is the store"),
    ...comparing(status.comparing),
  ]);
  panels.show(
    "Timeframes",
    status.timeframes.map((one) => [
      one.timeframe,
      one.newest_open_time_ms === null
        ? "–"
        : `${time(one.newest_open_time_ms).slice(5, 16)}, ${one.pairs_with_newest} of ${one.pairs} pairs`,
    ]),
  );
  const refused = Object.entries(status.refused_pairs);
  panels.show("Collector", [
    ["Version", status.version],
    ["Runs for", seconds(status.uptime_s)],
    ["Memory", bytes(status.rss_bytes)],
    ["CPU", `${((100 * status.cpu_s) / Math.max(status.uptime_s, 1)).toFixed(1)} % of a core`],
    ["Exchange's clock ahead", `${(status.clock_offset_ms / 1000).toFixed(3)} s`],
    ...(status.speed === 1 ? [] : [["Speed", `${status.speed} × (a simulator)`, "warn"]]),
    ...refused.slice(0, 10).map(([pair, why]) => [`${pair} is not collected`, why, "warn"]),
  ]);
}
