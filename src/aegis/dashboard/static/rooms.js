// Cache, requests, pool and servers; and what a run of the demo tells.

import {$, element, figures, number} from "./dom.js";
import {alive, sum} from "./processes.js";

const UPSTREAMS = {kis: "KIS 한국투자증권", dart: "DART 전자공시", naver: "Naver 네이버 금융"};

function shares(bar, parts, unit) {
  const total = parts.reduce((sum, [, value]) => sum + value, 0);
  bar.replaceChildren(...parts.map(([, value]) => {
    const part = element("span");
    part.style.flexGrow = value;
    return part;
  }));
  bar.setAttribute("aria-label", total ? parts.map(([name, value]) => `${name} ${number.format(value)}`).join(", ") + ` ${unit}` : `no ${unit} yet`);
}

export function showCache() {
  const local = sum("cache", "local_hits"), redis = sum("cache", "redis_hits"), misses = sum("cache", "misses");
  const total = local + redis + misses;
  shares($("cache-bar"), [["in process", local], ["Redis", redis], ["misses", misses]], "lookups");
  figures($("cache"), [
    ["in-process hits", number.format(local)], ["Redis hits", number.format(redis)], ["misses", number.format(misses)],
    ["hit rate", total ? `${(100 * (local + redis) / total).toFixed(1)} %` : "–"],
    ["loads", number.format(sum("cache", "loads"))], ["left to others", number.format(sum("cache", "waited"))],
  ]);
}

export function showHttp() {
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
  $("http").replaceChildren(...[...upstreams].sort().map(([host, seen]) => {
    const outcomes = Object.entries(seen.outcomes).map(([name, count]) => `${name} ${number.format(count)}`);
    const circuit = seen.circuit === "closed" ? [] : [element("span", {class: "alarm"}, `circuit ${seen.circuit}`)];
    return element("li", {"data-state": circuit.length ? "bad" : "good"}, element("strong", {}, host), ...circuit,
      element("span", {}, `${number.format(seen.attempts)} requests`), element("span", {}, outcomes.join(", ")));
  }));
}

export function showPool() {
  const active = sum("db", "active"), idle = sum("db", "idle"), most = sum("db", "max");
  shares($("pool-bar"), [["in use", active], ["idle", idle], ["not open", most - active - idle]], "connections");
  figures($("pool"), [
    ["in use", number.format(active)], ["idle", number.format(idle)], ["at most", number.format(most)],
    ["waiting", number.format(sum("db", "waiting"))],
    ["acquired", number.format(sum("db", "acquired"))], ["had to wait", number.format(sum("db", "waited"))],
  ]);
}

export function showServers(servers) {
  $("servers").replaceChildren(...Object.entries(servers).map(([name, seen]) => element("li",
    {"data-state": seen.ok ? "good" : "bad"}, element("strong", {}, name),
    element("span", {}, seen.ok ? `${(1000 * seen.ping_s).toFixed(1)} ms` : seen.problem), element("span", {}, seen.about ?? ""))));
}

// At the start a share can lie above one: a window's permits may come at once, but count as if they came evenly.
const share = (used) => `${Math.round(100 * Math.min(1, used))} %`;

export function showRun(run) {
  $("run").hidden = false;
  $("upstreams").replaceChildren(...Object.entries(run.upstreams ?? {}).map(([name, seen]) => element("tr", {},
    element("th", {scope: "row", lang: "ko"}, UPSTREAMS[name] ?? name),
    ...[number.format(seen.requests), number.format(seen.rejected), `${seen.worst_window} of ${seen.limit}`,
      share(seen.quota_used)].map((text) => element("td", {class: "number"}, text)))));
  figures($("totals"), [
    ["seconds", `${run.elapsed_s.toFixed(0)} of ${run.seconds}`], ["tokens issued", run.tokens_issued],
    ["ticks published", number.format(run.ticks_published)], ["ticks received", number.format(run.ticks_received)],
    ["gaps", run.gaps], ["rows written", number.format(run.rows_upserted)],
  ]);
}
