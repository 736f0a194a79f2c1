// The page: two streams of the broadcast's gateway come in (quotes, vitals), the document follows.
"use strict";

const LANES = ["urgent", "normal", "bulk"];
const PRICES_MAX = 60;
const SILENT_INTERVALS = 6;      // a process that misses so many is in trouble
const FORGET_AFTER_S = 60;
const $ = (id) => document.getElementById(id);
const now = () => Date.now() / 1000;
const number = new Intl.NumberFormat("en");
const signed = new Intl.NumberFormat("en", {signDisplay: "exceptZero"});
const percent = new Intl.NumberFormat("en", {signDisplay: "exceptZero", minimumFractionDigits: 2, maximumFractionDigits: 2});
const way = (change) => change > 0 ? "up" : change < 0 ? "down" : "same";
const arrow = {up: "▲", down: "▼", same: "–"};

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function write(target, text) {
  if (target.textContent !== String(text)) target.textContent = text;
}

// Write the figures of a definition list; the rows stay the same elements, so nothing jumps.
function figures(list, entries) {
  for (const [index, [name, value]] of entries.entries()) {
    const row = list.children[index] ?? list.appendChild(element("div", {}, element("dt"), element("dd")));
    write(row.children[0], name);
    write(row.children[1], value);
  }
}

function shares(bar, parts, unit) {
  const total = parts.reduce((sum, [, value]) => sum + value, 0);
  bar.replaceChildren(...parts.map(([, value]) => {
    const part = element("span");
    part.style.flexGrow = value;
    return part;
  }));
  bar.setAttribute("aria-label", total ? parts.map(([name, value]) => `${name} ${number.format(value)}`).join(", ") + ` ${unit}` : `no ${unit} yet`);
}

// --- quotes ---

const book = new Map();           // key -> row
let history = {};

class QuoteRow {
  constructor(key) {
    this.prices = history[key] ?? [];
    this.chart = new Sparkline();
    const cell = (kind) => element("td", kind ? {class: kind} : {});
    this.code = element("th", {scope: "row"}, key);
    this.name = element("td", {lang: "ko"});
    [this.price, this.change, this.percent] = [cell("number price"), cell("number wide"), cell("number")];
    [this.volume, this.source, this.age] = [cell("number wide"), cell("wide"), cell("number wide")];
    this.element = element("tr", {"data-code": key}, this.code, this.name, this.price, this.change, this.percent,
      element("td", {}, this.chart.element), this.volume, this.source, this.age);
    this.element.addEventListener("animationend", () => this.element.classList.remove("changed"));
  }

  show(update) {
    const quote = update.value;
    this.at = update.published_at || now();
    if (quote.name) write(this.name, quote.name);
    if (typeof quote.price !== "number") { write(this.price, JSON.stringify(quote).slice(0, 60)); return; }
    if (quote.price !== this.last) {
      if (this.last !== undefined) this.element.classList.add("changed");
      this.last = quote.price;
      if (this.prices.at(-1) !== quote.price) this.prices.push(quote.price);
      if (this.prices.length > PRICES_MAX) this.prices.shift();
      this.chart.draw(this.prices);
    }
    write(this.price, number.format(quote.price));
    const change = quote.change ?? 0, base = quote.price - change, direction = way(change);
    for (const cell of [this.price, this.change, this.percent, this.chart.element]) cell.dataset.way = direction;
    write(this.change, `${arrow[direction]} ${signed.format(change)}`);
    write(this.percent, base ? percent.format(100 * change / base) : "");
    write(this.volume, quote.volume === undefined ? "" : number.format(quote.volume));
    write(this.source, quote.source ?? "");
  }

  fits(text) {
    return !text || `${this.code.textContent} ${this.name.textContent}`.toLowerCase().includes(text);
  }
}

function showQuote(update) {
  let row = book.get(update.key);
  if (!row) {
    row = new QuoteRow(update.key);
    book.set(update.key, row);
    const after = [...book.keys()].sort().indexOf(update.key);
    $("book").insertBefore(row.element, $("book").children[after] ?? null);
  }
  row.show(update);
}

function showFilter() {
  const text = $("filter").value.trim().toLowerCase();
  let shown = 0;
  for (const row of book.values()) {
    row.element.hidden = !row.fits(text);
    shown += !row.element.hidden;
  }
  write($("shown"), book.size ? `${shown} of ${book.size}` : "no quotes yet");
}

// --- limits ---

const cards = new Map();          // limit's name -> card

class LimitCard {
  constructor(limit) {
    this.plot = new WindowPlot(60);
    this.count = element("p", {class: "count"});
    this.meter = element("meter", {min: 0, max: limit.limit, "aria-label": `${limit.label}: requests in the window`});
    this.when = element("p");
    this.who = element("p");
    this.lanes = LANES.map((lane) => element("li", {"data-lane": lane}));
    this.element = element("article", {class: "limit", "data-limit": limit.name},
      element("h3", {lang: "ko"}, limit.label), this.count, this.meter, this.plot.element,
      element("ul", {class: "lanes", "aria-label": "waiting, by lane"}, ...this.lanes), this.who, this.when);
  }

  show(limit) {
    this.seen = limit;
    const held = limit.held_for > 0, full = limit.used >= limit.limit;
    this.element.dataset.state = held ? "held" : full ? "full" : "free";
    this.count.replaceChildren(`${number.format(limit.used)} of ${number.format(limit.limit)} `,
      element("small", {}, `in ${limit.per >= 60 ? `${limit.per / 60} min` : `${limit.per} s`}`));
    this.meter.value = limit.used;
    this.meter.textContent = `${limit.used} of ${limit.limit}`;
    write(this.when, held ? `held by the upstream for ${limit.held_for.toFixed(1)} s`
      : limit.next_in > 0 ? `next permit in ${limit.next_in.toFixed(2)} s` : "a permit is free");
    this.plot.add(now(), limit.used / limit.limit);
  }

  // Who waits: [{process, lanes: [urgent, normal, bulk]}]
  showWaiting(waiting) {
    const totals = LANES.map((_, lane) => waiting.reduce((sum, each) => sum + each.lanes[lane], 0));
    LANES.forEach((lane, index) => {
      write(this.lanes[index], `${lane} ${totals[index]}`);
      this.lanes[index].dataset.waiting = totals[index] ? "yes" : "no";
    });
    const who = waiting.filter((each) => each.lanes.some(Boolean))
      .map((each) => `${each.lanes.reduce((sum, count) => sum + count)} in ${each.process}`);
    write(this.who, who.length ? `waiting: ${who.join(", ")}` : "nobody waits");
  }
}

function showLimits(limits) {
  for (const limit of limits) {
    let card = cards.get(limit.name);
    if (!card) {
      card = new LimitCard(limit);
      cards.set(limit.name, card);
      $("limits").append(card.element);
    }
    card.show(limit);
  }
}

// --- processes: what each tells, and the sums over those that live ---

const processes = new Map();      // name -> {vital, at}

const alive = () => [...processes.values()].filter((each) => !each.vital.ended && !silent(each));
const silent = (each) => now() - each.at > SILENT_INTERVALS * each.vital.every_s;
const sum = (room, field) => alive().reduce((total, each) => total + (each.vital.stats[room]?.[field] ?? 0), 0);

function showProcesses() {
  for (const [name, each] of processes) if (now() - each.at > FORGET_AFTER_S) processes.delete(name);
  $("processes").replaceChildren(...[...processes.values()].map((each) => {
    const age = now() - each.at, state = each.vital.ended ? "gone" : silent(each) ? "bad" : "good";
    const said = {gone: "ended", bad: `silent for ${age.toFixed(0)} s`, good: `up ${(each.at - each.vital.started_at).toFixed(0)} s`}[state];
    return element("li", {"data-state": state}, element("strong", {}, each.vital.name), element("span", {}, said),
      element("span", {}, `pid ${each.vital.pid}`));
  }));
}

function showWaiting() {
  for (const [name, card] of cards) {
    card.showWaiting(alive().map((each) => {
      const lanes = each.vital.stats.limiter?.limits?.[name]?.lanes ?? {};
      return {process: each.vital.name, lanes: LANES.map((_, lane) => lanes[lane]?.waiting ?? 0)};
    }));
  }
}

function showCache() {
  const local = sum("cache", "local_hits"), redis = sum("cache", "redis_hits"), misses = sum("cache", "misses");
  const total = local + redis + misses;
  shares($("cache-bar"), [["in process", local], ["Redis", redis], ["misses", misses]], "lookups");
  figures($("cache"), [
    ["in-process hits", number.format(local)], ["Redis hits", number.format(redis)], ["misses", number.format(misses)],
    ["hit rate", total ? `${(100 * (local + redis) / total).toFixed(1)} %` : "–"],
    ["loads", number.format(sum("cache", "loads"))], ["left to others", number.format(sum("cache", "waited"))],
  ]);
}

function showHttp() {
  const upstreams = new Map();
  for (const {vital} of alive()) {
    for (const [host, seen] of Object.entries(vital.stats.http?.upstreams ?? {})) {
      const known = upstreams.get(host) ?? {attempts: 0, outcomes: {}, circuit: "closed"};
      known.attempts += seen.attempts ?? 0;
      for (const [name, count] of Object.entries(seen.outcomes ?? {})) known.outcomes[name] = (known.outcomes[name] ?? 0) + count;
      const circuit = seen.circuit ?? vital.stats.http.circuits?.[host] ?? "closed";
      if (circuit !== "closed") known.circuit = circuit;
      upstreams.set(host, known);
    }
  }
  $("http").replaceChildren(...[...upstreams].sort().map(([host, seen]) => element("tr", {},
    element("th", {scope: "row"}, host), element("td", {class: "number"}, number.format(seen.attempts)),
    element("td", {class: "several"}, Object.entries(seen.outcomes).map(([name, count]) => `${name} ${number.format(count)}`).join(", ")),
    element("td", {"data-way": seen.circuit === "closed" ? "same" : "up"}, seen.circuit))));
}

function showPool() {
  const active = sum("db", "active"), idle = sum("db", "idle"), most = sum("db", "max");
  shares($("pool-bar"), [["in use", active], ["idle", idle]], "connections");
  figures($("pool"), [
    ["in use", number.format(active)], ["idle", number.format(idle)], ["at most", number.format(most)],
    ["waiting", number.format(sum("db", "waiting"))],
    ["acquired", number.format(sum("db", "acquired"))], ["had to wait", number.format(sum("db", "waited"))],
  ]);
}

function showServers(servers) {
  $("servers").replaceChildren(...Object.entries(servers).map(([name, seen]) => element("li",
    {"data-state": seen.ok ? "good" : "bad"}, element("strong", {}, name),
    element("span", {}, seen.ok ? `${(1000 * seen.ping_s).toFixed(1)} ms` : seen.problem), element("span", {}, seen.about ?? ""))));
}

const UPSTREAMS = {kis: "KIS 한국투자증권", dart: "DART 전자공시", naver: "Naver 네이버 금융"};

function showRun(run) {
  $("run").hidden = false;
  $("upstreams").replaceChildren(...Object.entries(run.upstreams ?? {}).map(([name, seen]) => element("tr", {},
    element("th", {scope: "row", lang: "ko"}, UPSTREAMS[name] ?? name),
    ...[number.format(seen.requests), number.format(seen.rejected), `${seen.worst_window} of ${seen.limit}`,
      `${Math.round(100 * seen.quota_used)} %`].map((text) => element("td", {class: "number"}, text)))));
  figures($("totals"), [
    ["seconds", `${run.elapsed_s.toFixed(0)} of ${run.seconds}`], ["tokens issued", run.tokens_issued],
    ["ticks published", number.format(run.ticks_published)], ["ticks received", number.format(run.ticks_received)],
    ["gaps", run.gaps], ["rows written", number.format(run.rows_upserted)],
  ]);
}

function showVital(update) {
  const {key, value} = update;
  if (key.startsWith("process:")) processes.set(key, {vital: value, at: update.published_at || now()});
  else if (key === "limits") showLimits(value);
  else if (key === "servers") showServers(value);
  else if (key === "run") showRun(value);
}

// --- the streams ---

const states = {quotes: "waiting", vitals: "waiting"};
const held = [];                  // what came in while the page was paused
let paused = false;

const SAID = {
  waiting: "waiting for the servers", live: "live", stale: "Redis is away; values may be old",
  lost: "connection lost; trying again", ended: "the run has ended; this is its last picture",
};

function showStatus() {
  const both = Object.values(states);
  const ended = processes.size > 0 && [...processes.values()].every((each) => each.vital.ended);
  const state = both.includes("lost") ? (ended ? "ended" : "lost") : both.includes("stale") ? "stale" : both.includes("waiting") ? "waiting" : "live";
  $("status").dataset.state = state;
  write($("status"), SAID[state]);
}

function follow(what, show) {
  const source = new EventSource(`live/${what}`);
  source.onmessage = (message) => {
    const event = JSON.parse(message.data);
    states[what] = event.live ? "live" : "stale";
    for (const update of event.updates) paused ? held.push([show, update]) : show(update);
    if (paused && held.length > 20000) held.splice(0, 10000);
    showStatus();
  };
  source.onerror = () => {
    if (states[what] !== "waiting") states[what] = "lost";
    if (source.readyState === EventSource.CLOSED) setTimeout(() => follow(what, show), 1000);
    showStatus();
  };
}

// That the broadcast's server is away cannot come over the broadcast.
let asked = 0;

async function askForServers() {
  if (!Object.values(states).includes("stale") || now() - asked < 1) return;
  asked = now();
  try { showServers((await (await fetch("state.json")).json()).servers ?? {}); } catch { /* the status says so */ }
}

function pause() {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", paused);
  write($("pause"), paused ? "Go on" : "Pause");
  for (const [show, update] of held.splice(0)) show(update);
}

function tick() {
  if (!paused) {
    showFilter();
    showWaiting();
    showCache();
    showHttp();
    showPool();
    showProcesses();
    showStatus();
    askForServers();
    for (const card of cards.values()) card.plot.draw(now());
    for (const row of book.values()) if (row.at) write(row.age, `${Math.max(0, now() - row.at).toFixed(0)} s`);
  }
  setTimeout(tick, 500);
}

async function start() {
  $("pause").addEventListener("click", pause);
  $("filter").addEventListener("input", showFilter);
  try { history = await (await fetch("history.json")).json(); } catch { history = {}; }
  follow("quotes", showQuote);
  follow("vitals", showVital);
  tick();
}

start();
