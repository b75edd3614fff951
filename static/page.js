// On every page: announce what the server said, keep "I'm here" alive, and refresh the inbox.

import { forgetAll } from "./choices.js";
import { announce, busy, post, sign } from "./passkey.js";

// A live region speaks only when it changes, and this one came with the page.
const region = document.getElementById("status");
const said = region.textContent.trim();
if (said) setTimeout(() => { region.textContent = ""; region.textContent = said; }, 150);

document.querySelector('form[action="/sign-out/"]')?.addEventListener("submit", forgetAll);

const RENEW = 20_000;
// What a page does by itself keeps no session alive.
const BACKGROUND = { "X-Background": "1" };
const here = document.getElementById("presence");

if (here) {
  const show = (on) => {
    here.setAttribute("aria-checked", String(on));
    here.toggleAttribute("data-own", on);
  };
  here.addEventListener("click", () =>
    busy([here], async () => {
      if (here.getAttribute("aria-checked") === "true") {
        announce((await post("/presence/end")).status);
        show(false);
        return;
      }
      const { publicKey } = await post("/presence/options");
      announce((await post("/presence/begin", { credential: await sign(publicKey) })).status);
      show(true);
    }),
  );
  const renew = async () => {
    // Another browser of the same person shows the switch too, but only the session that began presence renews it.
    if (document.visibilityState !== "visible" || !here.hasAttribute("data-own")) return;
    try {
      await post("/presence/renew", {}, BACKGROUND);
    } catch (error) {
      if (!["offline", "temporarily_unavailable"].includes(error.code)) show(false);
    }
  };
  setInterval(renew, RENEW);
  document.addEventListener("visibilitychange", renew);
  // Each page starts its own 20 s, so opening pages faster than that would renew nothing, and the lease would run out.
  void renew();
}

// How much waits: in the navigation and in the title of every page, and the list itself in the inbox.
const ASK = 5_000;
const badge = document.getElementById("waits");
const waiting = document.getElementById("waiting");

if (badge) {
  const title = document.title.replace(/^\([0-9+]+\) /, "");
  let asking = false;
  let stale = false;
  let drawn = Date.now();

  const refresh = async () => {
    const response = await fetch(`/approvals/${location.search}`, { credentials: "same-origin", headers: BACKGROUND }).catch(() => null);
    if (!response?.ok || response.redirected) return;
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
    const now = fresh.getElementById("waiting");
    if (!now || waiting.contains(document.activeElement)) return;
    if (now.innerHTML !== waiting.innerHTML) waiting.innerHTML = now.innerHTML;
    document.querySelector("h1").textContent = fresh.querySelector("h1").textContent;
    stale = false;
    drawn = Date.now();
  };

  const ask = async () => {
    if (asking || document.visibilityState !== "visible") return;
    asking = true;
    await update().finally(() => { asking = false; });
  };

  const update = async () => {
    const options = { credentials: "same-origin", redirect: "manual", headers: BACKGROUND };
    const response = await fetch("/approvals/waiting", options).catch(() => null);
    if (response?.type === "opaqueredirect") {
      // The session has ended. The inbox shows the sign-in; another page may hold what was typed.
      clearInterval(timer);
      document.removeEventListener("visibilitychange", ask);
      badge.hidden = true;
      document.title = title;
      if (waiting) location.reload();
    }
    if (!response?.ok) return;
    const found = await response.json();
    badge.textContent = found.waiting;
    badge.hidden = !found.waiting;
    document.title = found.waiting ? `(${found.waiting}) ${title}` : title;
    // Each minute also for the times, which are relative.
    stale ||= found.state !== badge.dataset.state || Date.now() - drawn > 60_000;
    badge.dataset.state = found.state;
    if (waiting && stale && !waiting.contains(document.activeElement)) await refresh();
  };

  const timer = setInterval(ask, ASK);
  document.addEventListener("visibilitychange", ask);
}
