// A text to sign that a typed reason changes: shown again as the reason changes, and once more before it is signed.

import { Refusal, complain, lastOnly, post } from "./passkey.js";

export class Preview {
  // `place` answers with the sentences for the reason and the token of the page as it then reads, which `token` keeps.
  constructor(place, { reason, text, token, renewed }) {
    Object.assign(this, { reason, text, token, renewed });
    this.ask = lastOnly(() => post(place, { reason: reason.value, drawn: token.value }), renewed);
    reason.addEventListener("input", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.renew().catch(() => {}), 250);
    });
  }

  async renew() {
    const { sentences, drawn } = await this.ask().catch((error) => {
      if (error instanceof Refusal && error.code !== "renewed") complain(error.message, error.body.changes);
      throw error;
    });
    this.token.value = drawn;
    const lines = sentences.map((line) => Object.assign(document.createElement("li"), { textContent: line }));
    this.text.replaceChildren(...lines);
  }

  // Refuses where the text on the page was not yet that of the reason.
  async confirm() {
    clearTimeout(this.timer);
    const before = this.text.textContent;
    await this.renew();
    if (this.text.textContent !== before) throw new Refusal({ error: "renewed", error_description: this.renewed });
  }
}
