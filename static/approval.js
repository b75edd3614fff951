// The approval page: shows at once what the choices mean, takes the second step, signs.

import { Refusal, announce, available, busy, complain, post, sign } from "./passkey.js";

const form = document.getElementById("approval");
const dialog = document.getElementById("second-step");
const buttons = [...form.querySelectorAll("button")];
const base = form.dataset.base;

const asked = () => {
  const choices = Object.fromEntries(new FormData(form));
  const { drawn } = choices;
  delete choices.drawn;
  delete choices.csrfmiddlewaretoken;
  return { choices, drawn };
};

const list = (element, lines) =>
  element.replaceChildren(...lines.map((line) => Object.assign(document.createElement("li"), { textContent: line })));

async function review() {
  try {
    const found = await post(`${base}review`, asked());
    list(document.getElementById("summary"), found.sentences);
    list(document.getElementById("changes"), found.changes);
    document.getElementById("changes-box").hidden = found.changes.length === 0;
    document.getElementById("alert").replaceChildren();
    return found;
  } catch (error) {
    if (error instanceof Refusal) complain(error.message, error.body.changes);
    throw error;
  }
}

let timer;
form.addEventListener("input", (event) => {
  if (event.target.name === "reason") return;
  clearTimeout(timer);
  timer = setTimeout(() => review().catch(() => {}), 250);
});

// Resolves true on "Continue", false on "Go back" or Escape.
function secondStep(dangerous) {
  list(document.getElementById("dangerous"), dangerous);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "continue"), { once: true });
  });
}

async function decide(decision) {
  if (decision === "approve") {
    const { dangerous } = await post(`${base}review`, asked());
    if (dangerous.length) {
      if (!(await secondStep(dangerous))) return;
      await post(`${base}second-step`, asked());
    }
  }
  const { publicKey } = await post(`${base}statement`, { ...asked(), decision });
  const { status, next } = await post(`${base}decide`, { credential: await sign(publicKey) });
  announce(status);
  location.assign(next);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const decision = event.submitter?.value === "deny" ? "deny" : "approve";
  busy(buttons, () => decide(decision));
});

// They come disabled: without a script or without passkeys they could do nothing.
for (const button of buttons) button.disabled = !available();
if (!available()) complain(document.body.dataset.noPasskeys);
