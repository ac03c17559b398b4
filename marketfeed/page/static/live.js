// What the service tells, event by event; and that it does not tell any more.

const SILENT_MS = 5000;
const AGAIN_MS = 3000;

// `told(name, value)` is called with each event, `live(state)` with "live" or "lost" when that changes.
export function listen(path, names, told, live) {
  let source = null;
  let heard = performance.now();
  let state = "connecting";

  function turn(next) {
    if (state !== next) {
      state = next;
      live(next);
    }
  }

  function open() {
    source = new EventSource(path);
    for (const name of names) {
      source.addEventListener(name, (event) => {
        heard = performance.now();
        told(name, JSON.parse(event.data));
        turn("live");
      });
    }
    source.addEventListener("error", () => {
      turn("lost");
      // After an answer that is no stream (a restart, too many pages) the browser does not try again.
      if (source.readyState === EventSource.CLOSED) setTimeout(open, AGAIN_MS);
    });
  }

  // A connection that is only half there says nothing and does not end.
  setInterval(() => {
    if (performance.now() - heard > SILENT_MS) {
      turn("lost");
      if (source.readyState !== EventSource.CLOSED && performance.now() - heard > 3 * SILENT_MS) {
        source.close();
        heard = performance.now();
        open();
      }
    }
  }, 1000);
  open();
}
