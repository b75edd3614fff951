// A text to sign that a typed reason changes: shown again as the reason changes, and once more before it is signed.

import { Refusal, complain, post } from "./passkey.js";

export class Preview {
  // `place` answers with the sentences for the reason and the token of the page as it then reads, which `token` keeps.
  constructor(place, { reason, text, token, renewed }) {
    Object.assign(this, { place, reason, text, token, renewed });
    let timer;
    reason.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.renew().catch(() => {}), 250);
    });
  }

  async renew() {
    try {
      const { sentences, drawn } = await post(this.place, { reason: this.reason.value, drawn: this.token.value });
      this.token.value = drawn;
      const lines = sentences.map((line) => Object.assign(document.createElement("li"), { textContent: line }));
      this.text.replaceChildren(...lines);
    } catch (error) {
      if (error instanceof Refusal) complain(error.message, error.body.changes);
      throw error;
    }
  }

  // Refuses where the text on the page was not yet that of the reason.
  async confirm() {
    const before = this.text.textContent;
    await this.renew();
    if (this.text.textContent !== before) throw new Refusal({ error: "renewed", error_description: this.renewed });
  }
}
