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
  const show = (on) => here.setAttribute("aria-checked", String(on));
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
    if (document.visibilityState !== "visible" || here.getAttribute("aria-checked") !== "true") return;
    try {
      await post("/presence/renew", {}, BACKGROUND);
    } catch {
      show(false);
    }
  };
  setInterval(renew, RENEW);
  document.addEventListener("visibilitychange", renew);
}

const waiting = document.getElementById("waiting");

if (waiting) {
  setInterval(async () => {
    if (document.visibilityState !== "visible" || waiting.contains(document.activeElement)) return;
    const response = await fetch("/approvals/", { credentials: "same-origin", headers: BACKGROUND }).catch(() => null);
    // The session ended meanwhile: show the sign-in instead of a page that cannot act.
    if (response?.redirected) location.reload();
    if (!response?.ok || response.redirected) return;
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
    const now = fresh.getElementById("waiting");
    if (now && now.innerHTML !== waiting.innerHTML) {
      waiting.innerHTML = now.innerHTML;
      document.title = fresh.title;
    }
  }, 5_000);
}
