// Any form whose submit is a passkey ceremony: post its fields, ask the passkey, post the answer, go on.

import { announce, busy, create, post, sign } from "./passkey.js";

for (const form of document.querySelectorAll("form[data-ceremony]")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const fields = Object.fromEntries(new FormData(form, event.submitter));
    delete fields.csrfmiddlewaretoken;
    busy([...form.querySelectorAll("button")], async () => {
      const { publicKey } = await post(form.dataset.options, fields);
      const credential = await (form.dataset.ceremony === "create" ? create : sign)(publicKey);
      const { status, next } = await post(form.dataset.finish, { credential });
      announce(status);
      location.assign(next);
    });
  });
}
