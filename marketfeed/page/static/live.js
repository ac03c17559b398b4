// The service's events one by one, whether they still arrive, and whether it is well.

import { put } from "./text.js";

const SILENT_MS = 5000;
const AGAIN_MS = 3000;

// `take(name, value)` is called with each event, `live(state)` with "live" or "lost" when that changes.
function listen(path, names, take, live) {
  let source = null;
  let opening = 0;
  let heard = performance.now();
  let state = "connecting";

  function turn(next) {
    if (state !== next) {
      state = next;
      live(next);
    }
  }

  function again() {
    clearTimeout(opening);
    opening = setTimeout(open, AGAIN_MS);
  }

  function open() {
    clearTimeout(opening);
    source?.close();
    source = new EventSource(path);
    for (const name of names) {
      source.addEventListener(name, (event) => {
        heard = performance.now();
        take(name, JSON.parse(event.data));
        turn("live");
      });
    }
    source.addEventListener("error", () => {
      turn("lost");
      // After an answer that is no stream (a restart, too many pages) the browser does not try again.
      if (source.readyState === EventSource.CLOSED) again();
    });
  }

  // A browser keeps pages that were left, with their connections, and has six of these for a host: the
  // pages that follow would be without.
  addEventListener("pagehide", () => {
    clearTimeout(opening);
    source.close();
  });
  addEventListener("pageshow", (event) => {
    if (event.persisted) {
      heard = performance.now();
      open();
    }
  });

  // A half-open connection sends nothing and does not end.
  setInterval(() => {
    if (performance.now() - heard > SILENT_MS) {
      turn("lost");
      if (performance.now() - heard > 3 * SILENT_MS) {
        heard = performance.now();
        open();
      }
    }
  }, 1000);
  open();
}

// The line at the top, the page's title, and the lists of what is not well and of what else asks for a hand.
export function headline(status, title, trouble = "not well") {
  const problems = status.reasons.length;
  // Nothing is wrong, and not all that is promised is there yet.
  const filling = status.state === "filling";
  const well = filling ? `◔ Filling: ${status.ready_pairs} of ${status.pairs} pairs are ready` : "● All is well";
  showHeadline(problems ? `✕ Not well: ${problems} ${problems > 1 ? "reasons" : "reason"}` : well, problems === 0);
  document.title = problems ? `✕ ${trouble} – ${title}` : `${filling ? "◔" : "●"} ${title}`;
  showTexts("reasons", status.reasons);
  showTexts("warnings", status.warnings ?? []);
}

function showTexts(id, texts) {
  const list = document.getElementById(id);
  if (list === null) return;
  list.hidden = texts.length === 0;
  while (list.children.length > texts.length) list.lastChild.remove();
  while (list.children.length < texts.length) list.append(document.createElement("li"));
  texts.forEach((text, index) => put(list.children[index], text));
}

function showHeadline(text, good) {
  const line = document.getElementById("headline");
  line.className = `headline ${good ? "good" : "bad"}`;
  put(line, text);
}

// Follow a service's events on its page: `seldom` what changes seldom, `now` what is so now.
export function follow(seldom, now, title) {
  let version = null;
  listen(
    "/events",
    ["seldom", "now"],
    (name, event) => {
      if (name === "now") {
        now(event);
        return;
      }
      // After an upgrade: a page must not be older than the service that it speaks to.
      if (version !== null && version !== event.version) location.reload();
      version = event.version;
      seldom(event);
    },
    (state) => {
      document.body.dataset.live = state;
      if (state === "live") return;
      const since = new Date().toISOString().slice(11, 19);
      showHeadline(`✕ Nothing is heard since ${since} UTC: what stands here is old`, false);
      document.title = `✕ not heard – ${title}`;
    },
  );
}
