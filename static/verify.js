// Ordinary forms whose act needs a passkey signature of its own: it is asked for on submit and posted with the fields.

import { available, busy, complain, texts, verify } from "./passkey.js";

for (const form of document.querySelectorAll("form[data-verify]:not([data-ceremony])")) {
  const buttons = [...form.querySelectorAll("[type=submit]")];
  for (const button of buttons) button.disabled = !available();
  if (!available()) complain(texts.noPasskeys);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    busy(buttons, async () => {
      const credential = await verify(form.getAttribute("action") || location.pathname);
      form.querySelector("[name=verification]")?.remove();
      const field = Object.assign(document.createElement("input"), { type: "hidden", name: "verification" });
      field.value = JSON.stringify(credential);
      form.append(field);
      form.submit();
    });
  });
}
