// Brings the page up to date in place when the server says that something changed. Without it every page is as
// complete, and stays as it was. Nothing here writes HTML from data: parts of the server's own page are exchanged.
"use strict";

const PAUSE_MS = 2000; // between two exchanges: a busy fleet changes all the time
const AGAIN_MS = 10000;
const live = document.getElementById("live");
let shown = document.body.dataset.number;
let wanted = false;
let busy = false;

function keepOpen(old, fresh) {
  for (const details of old.querySelectorAll("details[open]")) {
    const same = details.id && fresh.querySelector(`#${CSS.escape(details.id)}`);
    if (same) same.open = true;
  }
}

function exchange(old, fresh) {
  if (old.outerHTML === fresh.outerHTML) return;
  const focused = old.contains(document.activeElement) ? document.activeElement : null;
  if (focused && focused.matches("input, select, textarea")) return; // never under somebody's fingers
  const links = [...old.querySelectorAll("a, button, summary, [tabindex]")];
  const place = links.indexOf(focused);
  keepOpen(old, fresh);
  old.replaceWith(fresh);
  if (!focused) return;
  const now = [...fresh.querySelectorAll("a, button, summary, [tabindex]")];
  const same = now.find((link) => link.href && link.href === focused.href) || now[place];
  if (same) same.focus({ preventScroll: true });
}

async function refresh() {
  if (busy || document.hidden) {
    wanted = true;
    return;
  }
  busy = true;
  wanted = false;
  try {
    const answer = await fetch(location.href, { headers: { accept: "text/html" }, cache: "no-store" });
    if (answer.ok) {
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const old of document.querySelectorAll("[data-live]")) {
        const fresh = page.getElementById(old.id);
        if (fresh) exchange(old, document.adoptNode(fresh));
      }
      document.title = page.title;
    }
  } catch {
    // the server is away: what is shown stays, and the events say when it is back
  }
  setTimeout(() => {
    busy = false;
    if (wanted) refresh();
  }, PAUSE_MS);
}

function listen() {
  const events = new EventSource(`${document.body.dataset.base}/events`);
  events.onmessage = (message) => {
    live.textContent = "";
    if (message.data === shown) return;
    shown = message.data;
    refresh();
  };
  events.onerror = () => {
    live.textContent = "Connection lost: this page stays as it was, and goes on when the server is back.";
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, AGAIN_MS);
  };
  addEventListener("pagehide", () => events.close(), { once: true });
}

function inWords(ms) {
  const s = Math.max(0, Math.floor(ms / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 172800) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} days`;
}

setInterval(() => {
  for (const age of document.querySelectorAll("[data-since]")) {
    age.textContent = inWords(Date.now() - Date.parse(age.dataset.since));
  }
}, 1000);
document.addEventListener("visibilitychange", () => wanted && refresh());
addEventListener("pageshow", (event) => event.persisted && listen());
listen();
