// Values as people read them. Whatever comes from outside is only ever put into the page as text.

const DAY_S = 86400;

export function put(element, text) {
  // Written only when it differs: a page that is left open must not be laid out anew every second.
  if (element.textContent !== text) element.textContent = text;
}

export function count(value) {
  return value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en");
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 120) return `${Math.round(value)} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  if (value < 2 * DAY_S) return `${Math.round(value / 3600)} h`;
  return `${Math.round(value / DAY_S)} d`;
}

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit && value < 100 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

export function time(ms) {
  return new Date(ms).toISOString().slice(0, 19).replace("T", " ");
}

export function percent(fraction) {
  return fraction === null || fraction === undefined ? "–" : `${(fraction * 100).toFixed(4)} %`;
}

export function price(value, digits) {
  return value === null || value === undefined ? "–" : value.toFixed(digits);
}

// Decimals that distinguish prices of this size: 65000.12, 0.0000123456.
export function digitsOf(values) {
  const least = Math.min(...values.filter((value) => value > 0));
  if (!Number.isFinite(least)) return 2;
  return Math.max(2, Math.min(10, 5 - Math.floor(Math.log10(least)) - 1));
}
