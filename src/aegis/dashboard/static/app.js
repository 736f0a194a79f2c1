// The page: two streams of the broadcast's gateway come in (quotes, vitals), the document follows.

import {$, heard, write} from "./dom.js";
import {remember as rememberLimits, showCards, showLimits} from "./limits.js";
import {allEnded, noteVital, showProcesses} from "./processes.js";
import {remember as rememberPrices, showBook, showQuote} from "./quotes.js";
import {showCache, showHttp, showPool, showRun, showServers} from "./rooms.js";

const DRAW_EVERY_MS = 500;
const AGAIN_AFTER_MS = 1000;
const HELD_MAX = 20000;
const states = {quotes: "waiting", vitals: "waiting"};
const held = [];                  // what came in while the page was paused
let paused = false;

const SAID = {
  waiting: "waiting for the servers", live: "live", stale: "Redis is away; values may be old",
  lost: "connection lost; trying again", ended: "the run has ended; this is its last picture",
};

function showVital(update) {
  const {key, value} = update;
  if (key === "limits") {
    heard(update.published_at);
    showLimits(value);
  } else if (key === "servers") showServers(value);
  else if (key === "run") showRun(value);
  else if (key.startsWith("process:")) noteVital(update);
}

function showStatus() {
  const both = Object.values(states);
  const state = both.includes("lost") ? (allEnded() ? "ended" : "lost") : both.includes("stale") ? "stale" : both.includes("waiting") ? "waiting" : "live";
  $("status").dataset.state = state;
  write($("status"), SAID[state]);
}

function follow(what, show, seen = "") {
  const source = new EventSource(`live/${what}?last_event_id=${seen}`);
  source.onmessage = (message) => {
    const event = JSON.parse(message.data);
    seen = event.id;
    states[what] = event.live ? "live" : "stale";
    for (const update of event.updates) paused ? held.push([show, update]) : show(update);
    if (held.length > HELD_MAX) held.splice(0, HELD_MAX / 2);
    showStatus();
  };
  source.onerror = () => {
    if (states[what] !== "waiting") states[what] = "lost";
    source.close();               // the browser's own next try would come later, or never after a 503
    setTimeout(() => follow(what, show, seen), AGAIN_AFTER_MS);
    showStatus();
  };
}

// That the broadcast's server is away cannot come over the broadcast.
let asked = 0;

async function askForServers() {
  if (!Object.values(states).includes("stale") || performance.now() - asked < 1000) return;
  asked = performance.now();
  try { showServers((await (await fetch("state.json")).json()).servers ?? {}); } catch { /* the status says so */ }
}

function pause() {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", paused);
  write($("pause"), paused ? "Go on" : "Pause");
  for (const [show, update] of held.splice(0)) show(update);
}

function draw() {
  if (!paused) for (const show of [showBook, showCards, showCache, showHttp, showPool, showProcesses, showStatus, askForServers]) show();
  setTimeout(draw, DRAW_EVERY_MS);
}

async function start() {
  $("pause").addEventListener("click", pause);
  $("filter").addEventListener("input", showBook);
  try {
    const {prices = {}, limits = {}} = await (await fetch("history.json")).json();
    rememberPrices(prices);
    rememberLimits(limits);
  } catch { /* the charts begin now */ }
  follow("quotes", showQuote);
  follow("vitals", showVital);
  draw();
}

start();
