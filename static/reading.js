// A button that signs works only once its whole text was on screen, from the first line to the last without a gap.
// By keyboard and with a screen reader, the end of the text is a stop of its own in front of the button: the focus that
// comes there has moved past the text.

import { settle } from "./passkey.js";

// What of the page is on screen, in its own coordinates: less than the window where a reader has zoomed in.
const onScreen = () => {
  const { offsetTop = 0, height = innerHeight } = window.visualViewport ?? {};
  return { top: offsetTop, bottom: offsetTop + height };
};

class Reading {
  constructor(text, button) {
    this.text = text;
    this.button = button;
    this.begin();
    new MutationObserver(() => this.text.textContent !== this.words && this.begin()).observe(text, { childList: true });
    new ResizeObserver(() => this.look()).observe(text);
    const end = document.getElementById(`${text.id}-end`);
    end.addEventListener("focus", () => end.matches(":focus-visible") && this.finish());
  }

  // Other words are to be read from their beginning.
  begin() {
    this.words = this.text.textContent;
    this.seen = 0;
    this.finished = false;
    this.button.dataset.unread = "";
    settle(this.button);
    this.look();
  }

  // `seen` is how far down the text everything was on screen; what was jumped over stops it.
  look() {
    if (this.finished || document.visibilityState !== "visible") return;
    const { top, bottom } = onScreen();
    const box = this.text.getBoundingClientRect();
    if (box.top + this.seen >= top - 1) this.seen = Math.max(this.seen, Math.min(bottom, box.bottom) - box.top);
    if (box.height > 0 && this.seen >= box.height - 1) this.finish();
  }

  finish() {
    this.finished = true;
    delete this.button.dataset.unread;
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
