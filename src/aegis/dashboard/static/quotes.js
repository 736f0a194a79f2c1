// The book of quotes: one row per key, in order, filtered by code or name.

import {Sparkline} from "./charts.js";
import {$, element, now, number, write} from "./dom.js";

const PRICES_MAX = 60;
const ARROWS = {up: "▲", down: "▼", same: "–"};
const percent = new Intl.NumberFormat("en", {signDisplay: "exceptZero", minimumFractionDigits: 2, maximumFractionDigits: 2});
const book = new Map();           // key -> row
let history = {};                 // key -> prices from before the page was opened

class QuoteRow {
  constructor(key) {
    this.prices = history[key] ?? [];
    this.chart = new Sparkline();
    const cell = (kind) => element("td", kind ? {class: kind} : {});
    this.code = element("th", {scope: "row"}, key);
    this.name = element("td", {class: "name", lang: "ko"});
    [this.price, this.change, this.percent] = [cell("number price"), cell("number wide"), cell("number")];
    [this.volume, this.source, this.age] = [cell("number wide"), cell("wide"), cell("number wide")];
    this.element = element("tr", {"data-code": key}, this.code, this.name, this.price, this.change, this.percent,
      element("td", {}, this.chart.element), this.volume, this.source, this.age);
    this.element.addEventListener("animationend", () => this.element.classList.remove("changed"));
  }

  show(update) {
    const quote = update.value;
    this.at = update.published_at || now();
    if (quote?.name) write(this.name, quote.name);
    if (typeof quote?.price !== "number") { write(this.price, JSON.stringify(quote).slice(0, 60)); return; }
    if (quote.price !== this.last) {
      if (this.last !== undefined) this.element.classList.add("changed");
      this.last = quote.price;
      if (this.prices.at(-1) !== quote.price) this.prices.push(quote.price);
      if (this.prices.length > PRICES_MAX) this.prices.shift();
      this.chart.draw(this.prices);
    }
    write(this.price, number.format(quote.price));
    const change = quote.change ?? 0, base = quote.price - change;
    const way = change > 0 ? "up" : change < 0 ? "down" : "same";
    for (const cell of [this.price, this.change, this.percent, this.chart.element]) cell.dataset.way = way;
    write(this.change, `${ARROWS[way]} ${number.format(Math.abs(change))}`);
    write(this.percent, base ? percent.format(100 * change / base) : "");
    write(this.volume, quote.volume === undefined ? "" : number.format(quote.volume));
    write(this.source, quote.source ?? "");
  }

  showAge() {
    if (this.at) write(this.age, `${Math.max(0, now() - this.at).toFixed(0)} s`);
  }

  fits(text) {
    return !text || `${this.code.textContent} ${this.name.textContent}`.toLowerCase().includes(text);
  }
}

export function remember(prices) {
  history = prices;
}

export function showQuote(update) {
  let row = book.get(update.key);
  if (!row) {
    row = new QuoteRow(update.key);
    book.set(update.key, row);
    const after = [...book.keys()].sort().indexOf(update.key);
    $("book").insertBefore(row.element, $("book").children[after] ?? null);
  }
  row.show(update);
}

export function showBook() {
  const text = $("filter").value.trim().toLowerCase();
  let shown = 0;
  for (const row of book.values()) {
    row.element.hidden = !row.fits(text);
    shown += !row.element.hidden;
    row.showAge();
  }
  write($("shown"), book.size ? `${shown} of ${book.size}` : "no quotes yet");
}
