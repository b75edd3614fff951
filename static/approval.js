// The approval page: shows at once what the choices mean, takes the second step, signs.

import { Refusal, announce, available, busy, complain, post, settle, sign, texts } from "./passkey.js";
import { Preview } from "./preview.js";
import "./reading.js";

const form = document.getElementById("approval");
const dialog = document.getElementById("second-step");
const buttons = [...form.querySelectorAll("button")];
const base = form.dataset.base;

const asked = () => {
  const { drawn, denial_drawn, csrfmiddlewaretoken, ...choices } = Object.fromEntries(new FormData(form));
  return { choices, drawn };
};

const text = document.getElementById("sign-approve");

const list = (element, lines) =>
  element.replaceChildren(...lines.map((line) => Object.assign(document.createElement("li"), { textContent: line })));

async function review() {
  try {
    const found = await post(`${base}review`, asked());
    // The token of the page as it now reads: nothing else of it can be signed.
    form.elements.drawn.value = found.drawn;
    list(text, found.sentences);
    list(document.getElementById("changes"), found.changes);
    document.getElementById("changes-box").hidden = found.changes.length === 0;
    document.getElementById("alert").replaceChildren();
    return found;
  } catch (error) {
    if (error instanceof Refusal) complain(error.message, error.body.changes);
    throw error;
  }
}

// There is none where the grant was approved before.
const denial =
  form.elements.denial_drawn &&
  new Preview(`${base}review-denial`, {
    reason: form.elements.reason,
    text: document.getElementById("sign-deny"),
    token: form.elements.denial_drawn,
    renewed: form.dataset.renewed,
  });

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
  // It is as long as its text and scrolls with the page: from its beginning.
  dialog.style.top = `${scrollY}px`;
  dialog.scrollIntoView({ block: "start" });
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "continue"), { once: true });
  });
}

async function decide(decision) {
  if (decision === "approve") {
    const before = text.textContent;
    const { dangerous } = await review();
    if (text.textContent !== before) throw new Refusal({ error: "renewed", error_description: form.dataset.renewed });
    if (dangerous.length) {
      if (!(await secondStep(dangerous))) return;
      await post(`${base}second-step`, asked());
    }
  } else {
    await denial.confirm();
  }
  const fields = decision === "deny" ? { ...asked(), drawn: denial.token.value } : asked();
  const { publicKey } = await post(`${base}statement`, { ...fields, decision });
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
for (const button of buttons) settle(button);
if (!available()) complain(texts.noPasskeys);
