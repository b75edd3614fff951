// Any form whose submit is a passkey ceremony: post its fields, ask the passkey, post the answer, go on.

import { announce, available, busy, complain, create, post, settle, sign, texts, verify } from "./passkey.js";
import { Preview } from "./preview.js";
import "./reading.js";

for (const form of document.querySelectorAll("form[data-ceremony]")) {
  // Without a script, or without passkeys, these buttons could do nothing: they come disabled.
  for (const button of form.querySelectorAll("button")) settle(button);
  if (!available()) complain(texts.noPasskeys);
  const { reason, drawn, time_zone } = form.elements;
  if (time_zone) time_zone.value = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const preview =
    "review" in form.dataset &&
    new Preview(form.dataset.review, {
      reason,
      text: form.querySelector(".signed-text"),
      token: drawn,
      renewed: form.dataset.renewed,
    });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const fields = Object.fromEntries(new FormData(form, event.submitter));
    delete fields.csrfmiddlewaretoken;
    busy([...form.querySelectorAll("button")], async () => {
      if (preview) {
        await preview.confirm();
        fields.drawn = drawn.value;
      }
      // An existing passkey first, where a session alone may not do this.
      if ("verify" in form.dataset) fields.verification = await verify(form.dataset.options);
      const { publicKey } = await post(form.dataset.options, fields);
      const credential = await (form.dataset.ceremony === "create" ? create : sign)(publicKey);
      const { status, next } = await post(form.dataset.finish, { credential });
      announce(status);
      location.assign(next);
    });
  });
}
