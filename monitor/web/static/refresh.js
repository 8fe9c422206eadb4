// Brings the page up to date in place, where the reader stands; without it the page is as complete, and stays as it was.
"use strict";
const EVERY_MS = 5000;

async function refresh() {
  if (document.hidden) return;
  try {
    const answer = await fetch(location.href, { headers: { accept: "text/html" } });
    if (!answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    const main = document.querySelector("main");
    if (main.contains(document.activeElement)) return; // never under somebody's fingers
    main.replaceWith(fresh.querySelector("main"));
    document.title = fresh.title;
  } catch {
    // the daemon is away: what is shown stays, and the next try comes
  }
}

setInterval(refresh, EVERY_MS);
