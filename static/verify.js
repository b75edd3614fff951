// Ordinary forms whose act needs a passkey signature of its own: it is asked for on submit and posted with the fields.

import { available, busy, complain, settle, texts, verify } from "./passkey.js";

// As the server compares: capitals and spaces do not matter.
const plain = (text) => text.normalize("NFKC").toLowerCase().split(/\s+/).filter(Boolean).join(" ");

for (const form of document.querySelectorAll("form[data-verify]:not([data-ceremony])")) {
  const buttons = [...form.querySelectorAll("[type=submit]")];
  const settleAll = () => {
    for (const button of buttons) {
      // What a person has to type first is typed.
      if ("typed" in form.dataset && plain(form.elements.typed.value) !== plain(form.dataset.typed)) button.dataset.unread = "";
      else delete button.dataset.unread;
      settle(button);
    }
  };
  settleAll();
  form.addEventListener("input", settleAll);
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
