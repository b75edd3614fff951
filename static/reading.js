// A button that signs works only once its whole text was on screen, from the first line to the last without a gap.
// By keyboard and with a screen reader, the end of the text is a stop of its own in front of the button: a focus that Tab
// moved there from before the text has moved past it. A link to the end moves the focus too, and past nothing.
// Pressed before that, the button shows what is still to be read, and no more.

import { settle } from "./passkey.js";

const bar = document.querySelector(".reach");
const hint = document.querySelector(".reach .unread");

// What of the page is on screen, in its own coordinates: less than the window where a reader has zoomed in, and not
// what the bar of the buttons covers.
const onScreen = () => {
  const { offsetTop = 0, height = innerHeight } = window.visualViewport ?? {};
  const covered = bar ? bar.getBoundingClientRect().top : Infinity;
  return { top: offsetTop, bottom: Math.min(offsetTop + height, covered) };
};

// The lines that would be signed: not those of permissions that are switched off.
export const signedWords = (text) =>
  [...text.children]
    .filter((line) => !line.querySelector("input:not(:checked)"))
    .map((line) => line.textContent)
    .join("\n");

// Pixels of what was read that stay on screen, so that a reader finds the place again.
const MARGIN = 48;

// Milliseconds after a press that showed the text. A double tap or a held Enter key, whose first repeat comes after
// about 500 ms, must not also sign.
export const SETTLE = 700;

// Whether Tab is moving the focus forward.
let tabbed = false;
addEventListener("keydown", (event) => { tabbed = event.key === "Tab" && !event.shiftKey; }, { capture: true });
for (const kind of ["keyup", "pointerdown"]) addEventListener(kind, () => { tabbed = false; }, { capture: true });

class Reading {
  constructor(text, button) {
    this.text = text;
    this.button = button;
    this.pressed = -SETTLE;
    this.begin();
    const renew = () => signedWords(this.text) !== this.words && this.begin();
    new MutationObserver(renew).observe(text, { childList: true, characterData: true, subtree: true });
    button.addEventListener("click", (event) => this.guard(event), { capture: true });
    new ResizeObserver(() => this.look()).observe(text);
    const end = document.getElementById(`${text.id}-end`);
    document.addEventListener("focusin", ({ target }) => {
      this.passing = this.follows(target) || (this.passing && tabbed);
      if (target === end && this.passing) this.finish();
    });
  }

  // Other words are to be read from their beginning.
  begin() {
    this.words = signedWords(this.text);
    this.seen = 0;
    this.height = 0;
    // Whether the focus came by Tab alone from before the text to where it is.
    this.passing = this.follows(document.activeElement);
    this.finished = false;
    this.button.dataset.unread = "";
    if (hint) this.button.setAttribute("aria-describedby", hint.id);
    settle(this.button);
    this.look();
  }

  // Whether the text comes after this element of the page, or after its beginning.
  follows(element) {
    const place = element.compareDocumentPosition(this.text);
    return element !== document.body && Boolean(place & Node.DOCUMENT_POSITION_FOLLOWING);
  }

  // `seen` is how far down the text everything was on screen; what was jumped over stops it.
  look() {
    if (this.finished || document.visibilityState !== "visible") return;
    const { top, bottom } = onScreen();
    const box = this.text.getBoundingClientRect();
    // On a turned phone the text has other lines: the same share of it was read, no more.
    if (box.height < this.height) this.seen *= box.height / this.height;
    this.height = box.height;
    if (box.top + this.seen >= top - 1) this.seen = Math.max(this.seen, Math.min(bottom, box.bottom) - box.top);
    if (box.height > 0 && this.seen >= box.height - 1) this.finish();
  }

  guard(event) {
    const again = event.timeStamp - this.pressed < SETTLE;
    if (this.finished && !again) return;
    this.pressed = event.timeStamp;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (this.finished) return;
    // From the heading above the text, or where the reader was.
    const part = this.seen ? this.text : (this.text.closest("section") ?? this.text);
    scrollBy({ top: part.getBoundingClientRect().top + this.seen - onScreen().top - MARGIN });
  }

  finish() {
    this.finished = true;
    delete this.button.dataset.unread;
    this.button.removeAttribute("aria-describedby");
    settle(this.button);
  }
}

const readings = [...document.querySelectorAll("button[data-signs]")].map(
  (button) => new Reading(document.getElementById(button.dataset.signs), button),
);
const look = () => readings.forEach((reading) => reading.look());
for (const kind of ["scroll", "resize"]) {
  addEventListener(kind, look, { passive: true });
  window.visualViewport?.addEventListener(kind, look, { passive: true });
}
document.addEventListener("visibilitychange", look);
