// What every part of the page needs: elements, texts that change only when they differ, numbers, one clock.

export const $ = (id) => document.getElementById(id);
export const number = new Intl.NumberFormat("en");

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export function write(target, text) {
  if (target.textContent !== String(text)) target.textContent = text;
}

// Write the figures of a definition list; the rows stay the same elements, so nothing jumps.
export function figures(list, entries) {
  for (const [index, [name, value]] of entries.entries()) {
    const row = list.children[index] ?? list.appendChild(element("div", {}, element("dt"), element("dd")));
    write(row.children[0], name);
    write(row.children[1], value);
  }
}

// The clock of all ages is that of the broadcast's server, as the newest news of the watcher tells it: the reader's own
// may be wrong. It stands still when nothing is heard, so a page that has lost its source keeps its last picture.
const RUNS_ON_S = 2;
let heardAt = 0, heardHere = 0;

export function heard(at) {
  [heardAt, heardHere] = [at, performance.now()];
}

const since = () => (performance.now() - heardHere) / 1000;

export function now() {
  return heardAt ? heardAt + Math.min(RUNS_ON_S, since()) : Date.now() / 1000;
}

export function standsStill() {
  return heardAt > 0 && since() > RUNS_ON_S;
}
