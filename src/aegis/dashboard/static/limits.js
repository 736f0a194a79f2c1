// Each limit: requests in the sliding window against its ceiling, over the last minute, and who waits in which lane.

import {WindowPlot} from "./charts.js";
import {$, element, now, number, write} from "./dom.js";
import {waitingFor} from "./processes.js";

const LANES = ["urgent", "normal", "bulk"];
const PLOT_S = 60;
const NAMES_MAX = 4;
const cards = new Map();          // limit's name -> card
let history = {};                 // limit's name -> [[seconds ago, share of the window], ...]

class LimitCard {
  constructor(limit) {
    this.plot = new WindowPlot(PLOT_S, (history[limit.name] ?? []).map(([age, share]) => [now() - age, share]));
    this.count = element("p", {class: "count"});
    this.when = element("p", {class: "when"});
    this.fill = element("span");
    this.meter = element("div", {class: "meter", role: "meter", "aria-valuemin": 0, "aria-label": `${limit.label}: requests in the window`}, this.fill);
    this.lanes = LANES.map((lane) => element("li", {"data-lane": lane}));
    this.who = element("p", {class: "who"});
    this.element = element("article", {class: "limit", "data-limit": limit.name},
      element("h3", {lang: "ko"}, limit.label), element("div", {class: "now"}, this.count, this.when), this.meter,
      this.plot.element, element("ul", {class: "lanes", "aria-label": "waiting, by lane"}, ...this.lanes), this.who);
  }

  show(limit) {
    const held = limit.held_for > 0, full = limit.used >= limit.limit;
    this.element.dataset.state = held ? "held" : full ? "full" : "free";
    this.count.replaceChildren(`${number.format(limit.used)} of ${number.format(limit.limit)} `,
      element("small", {}, `in ${limit.per >= 60 ? `${limit.per / 60} min` : `${limit.per} s`}`));
    this.meter.setAttribute("aria-valuenow", limit.used);
    this.meter.setAttribute("aria-valuemax", limit.limit);
    this.meter.setAttribute("aria-valuetext", `${limit.used} of ${limit.limit}`);
    this.fill.style.width = `${100 * Math.min(1, limit.used / limit.limit)}%`;
    write(this.when, held ? `held by the upstream, ${limit.held_for.toFixed(1)} s`
      : limit.next_in > 0 ? `next in ${limit.next_in.toFixed(1)} s` : "free now");
    this.plot.add(now(), limit.used / limit.limit);
  }

  showWaiting({waiting, lately}) {
    LANES.forEach((lane, index) => {
      const count = waiting.reduce((total, each) => total + each.lanes[index], 0);
      write(this.lanes[index], `${lane} ${count}`);
      this.lanes[index].dataset.waiting = count ? "yes" : "no";
    });
    const names = waiting.slice(0, NAMES_MAX).map((each) => `${each.name}: ${each.lanes.reduce((sum, count) => sum + count)}`);
    if (waiting.length > NAMES_MAX) names.push(`${waiting.length - NAMES_MAX} more`);
    const mean = lately.granted ? lately.seconds / lately.granted : 0;
    const waited = mean >= 0.01 ? `; lately ${mean.toFixed(2)} s for a permit` : "";
    write(this.who, `${names.length ? `waiting in ${names.join(", ")}` : "nobody waits"}${waited}`);
  }
}

export function remember(shares) {
  history = shares;
}

export function showLimits(limits) {
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

export function showCards() {
  for (const [name, card] of cards) {
    card.showWaiting(waitingFor(name));
    card.plot.draw(now());
  }
}
