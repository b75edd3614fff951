// A text to sign that a typed reason changes: shown again as the reason changes, and once more before it is signed.

import { Refusal, complain, post } from "./passkey.js";

export class Preview {
  // `place` answers with the sentences for the reason and the token of the page as it then reads, which `token` keeps.
  constructor(place, { reason, text, token, renewed }) {
    Object.assign(this, { place, reason, text, token, renewed, asked: 0 });
    reason.addEventListener("input", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.renew().catch(() => {}), 250);
    });
  }

  // Only the answer to the last question is shown: an earlier one may come after it.
  async renew() {
    const number = ++this.asked;
    const { sentences, drawn } = await post(this.place, { reason: this.reason.value, drawn: this.token.value }).catch((error) => {
      if (number === this.asked && error instanceof Refusal) complain(error.message, error.body.changes);
      throw error;
    });
    if (number !== this.asked) throw new Refusal({ error: "renewed", error_description: this.renewed });
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
