// The approval page: shows at once what the choices mean, takes the second step, signs.

import { forget, keep, restore } from "./choices.js";
import { Refusal, announce, available, busy, complain, lastOnly, post, settle, sign, texts } from "./passkey.js";
import { Preview } from "./preview.js";
import { SETTLE, signedWords } from "./reading.js";

const form = document.getElementById("approval");
const dialog = document.getElementById("second-step");
const buttons = [...form.querySelectorAll("[data-signs]")];
const base = form.dataset.base;
// There is none where nothing is left to approve.
const text = document.getElementById("sign-approve");
const totalsBody = document.querySelector("#totals tbody");

const boxesOf = (set) => [...set.querySelectorAll("input")];

// The fields that differ from the request, the life, and the permissions that are on. A set of boxes is posted as the values of
// those that are ticked, even if none is.
function asked() {
  const choices = {};
  for (const field of form.elements) {
    if (!field.name || field.type === "hidden" || field.closest("[data-set]")) continue;
    if (field.type === "checkbox") {
      if (field.checked) choices[field.name] = field.value;
    } else if (field.validity.badInput) {
      // The browser does not say what was typed, such as half a time. So the server can say what to enter.
      choices[field.name] = "?";
    } else if (field.value.trim() && (field.value !== field.defaultValue || field.name === "days")) {
      choices[field.name] = field.value;
    }
  }
  for (const set of form.querySelectorAll("[data-set]")) {
    const on = boxesOf(set).filter((box) => box.checked);
    if (on.length < boxesOf(set).length) choices[set.dataset.set] = on.map((box) => box.value).join(" ");
  }
  return { choices, drawn: form.elements.drawn.value };
}

const list = (element, lines) =>
  element.replaceChildren(...lines.map((line) => Object.assign(document.createElement("li"), { textContent: line })));

// The permissions keep their rows, and with them the focus; the lines around them are made anew.
function showStatement(lines) {
  const plain = ([words]) => {
    const line = Object.assign(document.createElement("span"), { className: "line", textContent: words });
    const row = document.createElement("li");
    row.append(line);
    return row;
  };
  const gives = ([, place]) => place !== null;
  for (const row of text.querySelectorAll("li:not([data-place])")) row.remove();
  for (const [words, place] of lines.filter(gives)) document.getElementById(`line-${place}`).textContent = words;
  text.prepend(...lines.slice(0, lines.findIndex(gives)).map(plain));
  text.append(...lines.slice(lines.findLastIndex(gives) + 1).map(plain));
}

function showTotals(totals) {
  const rows = totals.map(([label, ...cells]) => {
    const row = document.createElement("tr");
    const head = Object.assign(document.createElement("th"), { scope: "row", textContent: label });
    row.append(head, ...cells.map((words) => Object.assign(document.createElement("td"), { textContent: words })));
    return row;
  });
  totalsBody.replaceChildren(...rows);
}

const wrongFields = () => [...form.querySelectorAll("[aria-invalid]")];

// `wrong` holds pairs of a field's name and what is wrong with it. What was typed stays.
function showWrong(wrong) {
  for (const field of wrongFields()) field.removeAttribute("aria-invalid");
  for (const place of form.querySelectorAll(".field-error")) place.hidden = true;
  for (const [name, message] of wrong) {
    const place = document.getElementById(`error-${name.replaceAll(".", "-")}`);
    if (!place) continue;
    for (const field of form.querySelectorAll(`[name="${CSS.escape(name)}"]`)) {
      field.setAttribute("aria-invalid", "true");
      const fold = field.closest("details");
      if (fold) fold.open = true;
    }
    Object.assign(place, { textContent: message, hidden: false });
  }
}

const askReview = lastOnly(() => post(`${base}review`, asked()), form.dataset.renewed);

async function review() {
  const found = await askReview().catch((error) => {
    if (error instanceof Refusal && error.code !== "renewed") {
      if (error.body.choices) showWrong(error.body.choices);
      else complain(error.message, error.body.changes);
    }
    throw error;
  });
  showWrong([]);
  // The token of the page as it now reads: nothing else of it can be signed.
  form.elements.drawn.value = found.drawn;
  showStatement(found.lines);
  showTotals(found.totals);
  list(document.getElementById("changes"), found.changes);
  document.getElementById("changes-box").hidden = found.changes.length === 0;
  document.getElementById("alert").replaceChildren();
  return found;
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
function reviewSoon(wait) {
  clearTimeout(timer);
  timer = setTimeout(() => review().catch(() => {}), wait);
}

form.addEventListener("input", (event) => {
  keep(form);
  if (event.target.name !== "reason") reviewSoon(250);
});

// No button of this form submits it: Enter in a field shows what the field means and decides nothing.
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !event.target.matches("input")) return;
  event.preventDefault();
  if (text) reviewSoon(0);
});

// What was typed survives a reload, so this is the way back to what the agent asked for.
document.getElementById("undo")?.addEventListener("click", () => {
  const reason = form.elements.reason?.value;
  form.reset();
  if (reason) form.elements.reason.value = reason;
  keep(form);
  reviewSoon(0);
  form.querySelector("[data-place] input").focus();
});

// Resolves true on "Continue", false on "Go back" or Escape.
function secondStep(dangerous) {
  list(document.getElementById("dangerous"), dangerous);
  dialog.returnValue = "";
  // The second tap of a double tap was meant for the button that the dialog now covers.
  const go = dialog.querySelector('[value="continue"]');
  go.disabled = true;
  setTimeout(() => { go.disabled = false; }, SETTLE);
  dialog.showModal();
  // It is as long as its text and scrolls with the page: from its beginning.
  dialog.style.top = `${scrollY}px`;
  dialog.scrollIntoView({ block: "start" });
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "continue"), { once: true });
  });
}

// Refuses while a field is wrong, where the text on the page was not yet that of the choices, and where the page showed
// another total: a request may have been approved in another tab.
async function confirmStatement() {
  clearTimeout(timer);
  const before = signedWords(text);
  const total = totalsBody.textContent;
  const found = await review().catch((error) => {
    if (!error.body?.choices) throw error;
    throw new Refusal({ ...error.body, error_description: form.dataset.wrong });
  });
  if (signedWords(text) !== before) throw new Refusal({ error: "renewed", error_description: form.dataset.renewed });
  if (totalsBody.textContent !== total) throw new Refusal({ error: "renewed", error_description: form.dataset.total });
  return found;
}

async function decide(decision) {
  if (decision === "approve") {
    const { dangerous } = await confirmStatement();
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
  forget(form);
  announce(status);
  location.assign(next);
}

for (const button of buttons) {
  button.addEventListener("click", async () => {
    await busy(buttons, () => decide(button.id));
    wrongFields()[0]?.focus();
  });
  // They come disabled: without a script or without passkeys they could do nothing.
  settle(button);
}
if (!available()) complain(texts.noPasskeys);
if (restore(form)) {
  if (text) review().catch(() => {});
  denial?.renew().catch(() => {});
}
