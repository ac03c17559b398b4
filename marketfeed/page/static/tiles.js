// A tile per pair: how fresh it is, by colour, sign and words.

import { put, seconds } from "./text.js";

// By the numbers of marketfeed/tiles.py.
export const STATES = [
  { name: "fresh", sign: "●", means: "fresh" },
  { name: "waiting", sign: "○", means: "nothing has come yet" },
  { name: "late", sign: "◐", means: "late: the newest stored mark price is old" },
  { name: "holes", sign: "▲", means: "candles are missing for more than a minute" },
  { name: "silent", sign: "✕", means: "silent: past its deadline" },
  { name: "halted", sign: "‖", means: "halted, by exchangeInfo" },
];
const SILENT = 4;
const WAITING = 1;

function words([state, age, silent, holes]) {
  const mark = age === null ? "no mark price" : seconds(age / 10);
  if (STATES[state].name === "silent") return `silent ${silent > 1 ? `×${silent} ` : ""}${mark}`;
  if (STATES[state].name === "halted") return `halted ${mark}`;
  if (STATES[state].name === "holes") return `${holes} missing`;
  if (STATES[state].name === "late") return `late ${mark}`;
  return mark;
}

// What all pairs are quoted and settled in, as "/USDT:USDT": it need not stand on every tile.
export function commonEnd(pairs) {
  const ends = new Set(pairs.map((pair) => (pair.includes("/") ? pair.slice(pair.indexOf("/")) : "")));
  return ends.size === 1 ? [...ends][0] : "";
}

export class Tiles {
  constructor(list, find, troubled, onChoice) {
    this.list = list;
    this.find = find;
    this.troubled = troubled;
    this.onChoice = onChoice;
    this.pairs = [];
    this.buttons = [];
    this.states = [];
    this.chosen = null;
    list.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) this.choose(this.pairs[this.buttons.indexOf(button)]);
    });
    list.addEventListener("keydown", (event) => this.onKey(event));
    list.addEventListener("focusin", (event) => this.keepTabStop(event.target));
    for (const field of [find, troubled]) field.addEventListener("input", () => this.filter());
  }

  setPairs(pairs) {
    const focused = this.buttons.indexOf(document.activeElement);
    const focusedPair = focused < 0 ? null : this.pairs[focused];
    this.pairs = pairs;
    this.states = [];
    const common = commonEnd(pairs);
    this.buttons = pairs.map((pair) => {
      const button = document.createElement("button");
      button.type = "button";
      button.title = pair;
      button.tabIndex = -1;
      button.setAttribute("aria-pressed", String(pair === this.chosen));
      const name = document.createElement("span");
      name.className = "name";
      name.textContent = pair.slice(0, pair.length - common.length);
      const how = document.createElement("span");
      how.className = "how";
      button.append(name, how);
      return button;
    });
    this.list.replaceChildren(
      ...this.buttons.map((button) => {
        const item = document.createElement("li");
        item.append(button);
        return item;
      }),
    );
    this.filter();
    if (focusedPair !== null) this.buttons[pairs.indexOf(focusedPair)]?.focus();
  }

  show(tiles) {
    // Of another list of pairs: the next event brings that.
    if (tiles.length !== this.buttons.length) return;
    tiles.forEach((tile, index) => {
      const button = this.buttons[index];
      const state = STATES[tile[0]];
      if (button.dataset.state !== state.name) button.dataset.state = state.name;
      put(button.lastChild, `${state.sign} ${words(tile)}`);
    });
    this.states = tiles.map((tile) => tile[0]);
    if (this.troubled.checked) this.filter();
  }

  counts() {
    return STATES.map((_, number) => this.states.filter((state) => state === number).length);
  }

  choose(pair) {
    this.chosen = pair;
    this.buttons.forEach((button, index) => {
      button.setAttribute("aria-pressed", String(this.pairs[index] === pair));
    });
    this.onChoice(pair);
  }

  filter() {
    const wanted = this.find.value.trim().toLowerCase();
    this.buttons.forEach((button, index) => {
      const state = this.states[index] ?? WAITING;
      const out =
        !this.pairs[index].toLowerCase().includes(wanted) ||
        (this.troubled.checked && state <= WAITING && button !== document.activeElement);
      button.parentElement.hidden = out;
    });
    this.keepTabStop(null);
  }

  // One stop of the Tab key for all tiles; arrows go on from there.
  keepTabStop(target) {
    const shown = this.shown();
    const old = shown.find((button) => button.tabIndex === 0);
    const next =
      shown.find((button) => button === target) ??
      old ??
      shown.find((button) => button.getAttribute("aria-pressed") === "true") ??
      shown[0];
    for (const button of this.buttons) button.tabIndex = button === next ? 0 : -1;
  }

  shown() {
    return this.buttons.filter((button) => !button.parentElement.hidden);
  }

  onKey(event) {
    const shown = this.shown();
    const at = shown.indexOf(document.activeElement);
    if (at < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    const top = shown[0].offsetTop;
    const columns = Math.max(1, shown.filter((button) => button.offsetTop === top).length);
    const to = {
      ArrowRight: at + 1,
      ArrowLeft: at - 1,
      ArrowDown: at + columns,
      ArrowUp: at - columns,
      Home: 0,
      End: shown.length - 1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    shown[Math.max(0, Math.min(shown.length - 1, to))].focus();
  }
}

export function legend(list) {
  list.replaceChildren(
    ...STATES.map((state) => {
      const item = document.createElement("li");
      item.className = state.name;
      const sign = document.createElement("span");
      sign.className = "sign";
      sign.setAttribute("aria-hidden", "true");
      sign.textContent = state.sign;
      item.append(sign, ` ${state.means}`);
      return item;
    }),
  );
}

export { SILENT };
