// What each process tells about itself, which of them live, and the sums over those.

import {$, element, now, standsStill, write} from "./dom.js";

const SILENT_INTERVALS = 6;       // a process that misses so many is gone: killed, hung or cut off
const FORGET_AFTER_S = 60;
const MEAN_OVER_S = 10;
const processes = new Map();      // name -> {vital, at, before: [{at, limits}], rows}

export const alive = () => isOver() ? inOrder() : inOrder().filter((each) => !each.vital.ended && !gone(each));
export const sum = (room, field) => alive().reduce((total, each) => total + (each.vital.stats[room]?.[field] ?? 0), 0);
export const allEnded = () => processes.size > 0 && [...processes.values()].every((each) => each.vital.ended);

const isOver = () => standsStill() && allEnded();  // a run has ended: its last words are its result
const gone = (each) => now() - each.at > SILENT_INTERVALS * each.vital.every_s;
const inOrder = () => [...processes.values()].sort((a, b) => a.vital.name.localeCompare(b.vital.name, "en", {numeric: true}));

export function noteVital(update) {
  const vital = update.value, at = update.published_at || now();
  const before = processes.get(update.key)?.before ?? [];
  before.push({at, pid: vital.pid, limits: vital.stats.limiter?.limits ?? {}});
  while (before.length > 2 && (before[1].at < at - MEAN_OVER_S || before[0].pid !== vital.pid)) before.shift();
  processes.set(update.key, {vital, at, before});
}

// Who waits for a limit, [{name, lanes: [urgent, normal, bulk]}], and what was waited lately: {granted, seconds}.
export function waitingFor(limit) {
  const lately = {granted: 0, seconds: 0};
  const waiting = alive().map(({vital, before}) => {
    const lanes = lanesOf(before.at(-1).limits[limit]), old = lanesOf(before[0].limits[limit]);
    lanes.forEach((lane, index) => {
      lately.granted += lane.granted - (old[index]?.granted ?? 0);
      lately.seconds += lane.waited_s - (old[index]?.waited_s ?? 0);
    });
    return {name: vital.name, lanes: lanes.map((lane) => lane.waiting)};
  });
  return {waiting: waiting.filter((each) => each.lanes.some(Boolean)), lately};
}

const lanesOf = (limit) => Object.values(limit?.lanes ?? {});  // their keys are 0, 1, 2, in this order

export function showProcesses() {
  for (const [key, each] of processes) if (now() - each.at > FORGET_AFTER_S) processes.delete(key);
  const told = inOrder();
  write($("no-processes"), told.length ? "" : "none has told anything: open a Runtime with a name, vitals=\"collector 1\"");
  $("processes").replaceChildren(...told.map((each) => {
    const state = each.vital.ended ? "ended" : gone(each) ? "gone" : "good";
    const said = {ended: "ended", gone: `gone; last heard ${(now() - each.at).toFixed(0)} s ago`,
      good: `up ${duration(each.at - each.vital.started_at)}`}[state];
    return element("li", {"data-state": state}, element("strong", {}, each.vital.name),
      element("span", {}, `pid ${each.vital.pid}`), element("span", {}, said));
  }));
}

function duration(seconds) {
  const s = Math.max(0, Math.round(seconds)), m = Math.floor(s / 60), h = Math.floor(m / 60);
  return h ? `${h} h ${m % 60} min` : m ? `${m} min ${s % 60} s` : `${s} s`;
}
