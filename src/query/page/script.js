// Keeps the page up to date while somebody looks at it. Without this script it is complete, as of when it was loaded.
"use strict";

// Changes that are shown.
const KEPT = 20;

// How often the totals are read, and how soon after a failure all is read again. In milliseconds.
const TOTALS_INTERVAL = 5000;
const RETRY_INTERVAL = 5000;

// Changes are announced together, so that a flood of them is one sentence now and then. In milliseconds.
const ANNOUNCE_INTERVAL = 3000;

const by = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en-US");

let stream, totals, retry, frame, announcing;
let arrived = new Map();
let unannounced = [];

function moment(text) {
  const part = (options) => new Date(text).toLocaleString("en-GB", { timeZone: "UTC", ...options });
  const month = new Date(text).toLocaleString("en-US", { timeZone: "UTC", month: "short" });
  const day = `${part({ day: "numeric" })} ${month} ${part({ year: "numeric" })}`;
  return `${day}, ${part({ hour: "2-digit", minute: "2-digit" })} UTC`;
}

function row({ domain, status, delivered, bounced, since }) {
  const item = by("change").content.firstElementChild.cloneNode(true);
  const set = (selector, text) => (item.querySelector(selector).textContent = text);
  item.querySelector("a").href = `/?domain=${encodeURIComponent(domain)}`;
  item.querySelector(".mark").classList.add(status.replace(" ", "-"));
  set(".domain", domain);
  set(".name", status);
  set(".delivered", number.format(delivered));
  set(".bounced", number.format(bounced));
  if (since) {
    set("time", moment(since));
    item.querySelector("time").dateTime = since;
  }
  item.className = "new";
  return item;
}

// Shows what has arrived since the last frame. A domain is in the list once, at its latest change.
function show() {
  frame = undefined;
  const list = by("changes");
  for (const item of [...list.children]) {
    if (arrived.has(item.querySelector(".domain").textContent)) item.remove();
  }
  for (const report of [...arrived.values()].slice(-KEPT)) list.prepend(row(report));
  while (list.children.length > KEPT) list.lastElementChild.remove();
  by("none").hidden = true;
  arrived = new Map();
}

function announce() {
  announcing = undefined;
  const last = unannounced.at(-1);
  if (!last) return;
  const before = unannounced.length > 1 ? `${number.format(unannounced.length)} changes. The last one: ` : "";
  by("announcement").textContent = `${before}${last.domain} is now ${last.status}.`;
  unannounced = [];
  announcing = setTimeout(announce, ANNOUNCE_INTERVAL);
}

function take(event) {
  const report = JSON.parse(event.data);
  by("changes").dataset.position = event.lastEventId;
  arrived.delete(report.domain);
  arrived.set(report.domain, report);
  unannounced.push(report);
  frame ??= requestAnimationFrame(show);
  announcing ??= setTimeout(announce, 0);
}

async function read() {
  const answer = await fetch("/page/live");
  if (!answer.ok) throw new Error(answer.statusText);
  return new DOMParser().parseFromString(await answer.text(), "text/html");
}

async function readTotals() {
  try {
    const fresh = await read();
    for (const id of ["totals", "chart", "minutes"]) by(id).replaceWith(fresh.getElementById(id));
  } catch {
    fail();
  }
}

async function readAll() {
  const open = document.querySelector("details")?.open;
  const fresh = await read();
  by("live").replaceChildren(...fresh.body.childNodes);
  if (open) document.querySelector("details").open = true;
}

function follow() {
  stop();
  stream = new EventSource(`/changes?since=${encodeURIComponent(by("changes").dataset.position)}`);
  stream.onopen = () => {
    by("state").textContent = "Live: changes appear as they come.";
    by("state").className = "soft live";
  };
  stream.onmessage = take;
  stream.onerror = fail;
  totals = setInterval(readTotals, TOTALS_INTERVAL);
}

function stop() {
  stream?.close();
  clearInterval(totals);
  clearTimeout(retry);
}

function fail() {
  stop();
  if (by("state")) {
    by("state").textContent = "Not live: the connection is lost. Trying again.";
    by("state").className = "soft";
  }
  retry = setTimeout(resume, RETRY_INTERVAL);
}

async function resume() {
  try {
    await readAll();
    if (!document.hidden) follow();
  } catch {
    fail();
  }
}

document.addEventListener("visibilitychange", () => {
  stop();
  if (!document.hidden) resume();
});
if (!document.hidden) {
  if (by("changes")) follow();
  else fail();
}
