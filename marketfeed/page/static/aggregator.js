// The aggregator's page: what was voted, decided and forwarded last, live.

import { follow, headline } from "./live.js";
import { Panels, badIf, shipping, warnIf } from "./panels.js";
import { bytes, count, put, seconds, time } from "./text.js";

// How a forward stands, as a sign, words, and how bad that is.
const FORWARDS = {
  queued: ["○", "queued", ""],
  sending: ["◐", "being sent", ""],
  accepted: ["●", "accepted", "good"],
  found: ["●", "found at the bot", "good"],
  refused: ["✕", "refused", "bad"],
  expired: ["▲", "expired", "warn"],
  unknown: ["▲", "unknown", "warn"],
  lost: ["✕", "lost: look into the bot", "bad"],
};

// Characters of what a signal has beside its vote: `marketfeed signals` shows all of it.
const MOST_BESIDE = 80;

const element = (id) => document.getElementById(id);
const panels = new Panels(element("panels"));
let shown = -1;
let asking = false;

// `rows` are cells, each a text or [text, class].
function fill(body, rows, nothing) {
  body.replaceChildren(
    ...(rows.length ? rows : [[nothing]]).map((cells) => {
      const line = document.createElement("tr");
      line.append(
        ...cells.map((cell) => {
          const [text, kind] = Array.isArray(cell) ? cell : [cell, ""];
          const made = document.createElement("td");
          made.textContent = text;
          made.className = kind;
          return made;
        }),
      );
      return line;
    }),
  );
}

// What the meta bot made of its copy.
function copy(decided) {
  if (decided.meta_state === null) return "";
  const [sign, words] = FORWARDS[decided.meta_state] ?? ["▲", decided.meta_state];
  return ` · meta ${sign} ${words}`;
}

function forward(decided) {
  if (decided.state === null) return "–";
  const [sign, words, kind] = FORWARDS[decided.state] ?? ["▲", decided.state, "warn"];
  const status = decided.status === null ? "" : ` (${decided.status})`;
  const tries = decided.attempts > 1 ? `, ${decided.attempts} attempts` : "";
  return [`${sign} ${words}${status}${tries}${copy(decided)}`, kind];
}

async function recent(seq) {
  asking = true;
  try {
    const answer = await fetch("/recent", { signal: AbortSignal.timeout(10000) });
    const body = await answer.json();
    if (!answer.ok) throw new Error(body.error);
    fill(
      element("decided"),
      body.decided.map((one) => [
        time(one.decided_ms).slice(5),
        one.pair,
        one.side,
        forward(one),
        one.outcome,
        `${one.votes} of ${one.of}`,
        one.confidence.toFixed(2),
        one.primary,
        one.reasons.replaceAll("\n", "; "),
      ]),
      "None yet",
    );
    fill(
      element("posted"),
      body.posted.map((one) => [
        time(one.received_ms).slice(5),
        one.pair,
        one.side,
        one.feeder,
        one.confidence.toFixed(2),
        [one.outcome, one.outcome === "voted" ? "" : "warn"],
        one.beside.length > MOST_BESIDE ? `${one.beside.slice(0, MOST_BESIDE)}…` : one.beside,
      ]),
      "None yet",
    );
    fill(
      element("refused"),
      body.refused.map((one) => [
        time(one.last_ms).slice(5),
        one.feeder ? `${one.who}, feeder ${one.feeder}` : one.who,
        count(one.times),
        [`${one.status} ${one.sentence}`, "warn"],
      ]),
      "None yet",
    );
    shown = seq;
    element("problem").hidden = true;
  } catch (error) {
    put(element("problem"), `The ledger cannot be read now: ${error.message}`);
    element("problem").hidden = false;
  } finally {
    asking = false;
  }
}

const listed = (counts) => {
  const rows = Object.entries(counts);
  return rows.length ? rows.map(([name, value]) => [name, count(value)]) : [["None yet", "–"]];
};
const sum = (counts) => Object.values(counts).reduce((total, value) => total + value, 0);

// What a bot says of itself, and the orders that it refused, by why.
function bot(told) {
  const said = (value) => (value === null ? "not told" : String(value));
  const outside = told.outside_pairs.length ? `: ${told.outside_pairs.slice(0, 3).join(", ")}` : "";
  return [
    ["State", said(told.state), told.state === "running" || told.state === null ? "" : "bad"],
    ["Takes forced entries", said(told.force_entry_enable), told.force_entry_enable === false ? "bad" : ""],
    ["Open trades at most", told.max_open_trades < 0 ? "any number" : said(told.max_open_trades)],
    ["Stake, mode", `${said(told.stake_currency)}, ${said(told.trading_mode)}`],
    ["Pairs on its whitelist", said(told.whitelist)],
    ["Decisions of others", `${count(told.outside_whitelist)}${outside}`],
    ["Expired though not full", count(told.expired_with_room), warnIf(told.expired_with_room)],
    ...Object.entries(told.refusals)
      .filter(([, value]) => value)
      .map(([why, value]) => [`Refused: ${why}`, count(value)]),
  ];
}

function now({ status, next_seq: seq }) {
  headline(status, "Marketfeed aggregator");
  if (seq !== shown && !asking && !document.hidden) recent(seq);
  const lost = Object.values(status.lost).flat().length;
  const expired = Object.values(status.expired).reduce((total, counts) => total + sum(counts), 0);
  panels.show("Now", [
    ["Open windows", count(status.open_windows)],
    ["Signals being stored", count(status.pending)],
    ["Forwards waiting", count(sum(status.waiting))],
    ...Object.entries(status.waits_for)
      .filter(([, [why]]) => why)
      .map(([side, [why]]) => [`Bot of ${side}`, why, "warn"]),
    ["Forwards expired waiting", count(expired)],
    ["Forwards not confirmed", count(sum(status.unsettled)), warnIf(sum(status.unsettled))],
    ["Forwards lost", count(lost), badIf(lost)],
  ]);
  for (const [side, told] of Object.entries(status.bots)) panels.show(`Bot of ${side}`, bot(told));
  panels.show("Signals", listed(status.signals));
  const contradicting = Object.entries(status.contradictions);
  if (contradicting.length) {
    const rows = contradicting.map(([name, value]) => [name, count(value), "warn"]);
    panels.show("Field and tag contradict each other", rows);
  }
  panels.show("Refused", listed(status.refused));
  panels.show("Decisions", listed(status.decisions));
  panels.show("Forwards", listed(status.forwards));
  panels.show("InfluxDB", shipping(status.shipping, "none: the ledger is the store"));
  panels.show("Aggregator", [
    ["Version", status.version],
    ["Address", status.url],
    ["Runs for", seconds(status.uptime_s)],
    ["Memory", bytes(status.rss_bytes)],
    ["CPU", `${((100 * status.cpu_s) / Math.max(status.uptime_s, 1)).toFixed(1)} % of a core`],
  ]);
}

follow(() => {}, now, "Marketfeed aggregator");
