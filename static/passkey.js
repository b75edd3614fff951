// The passkey ceremonies and how every script of ours talks to the server. Nothing is kept here: challenges live on
// the server, and an answer is posted where it was asked for.

export const texts = document.querySelector("[data-failed]").dataset;

export class Refusal extends Error {
  constructor(body) {
    super(body.error_description || texts.failed);
    this.code = body.error || "failed";
    this.body = body;
  }
}

export async function post(url, body = {}, headers = {}) {
  let response;
  try {
    response = await fetch(url, {
      method: "POST",
      credentials: "same-origin",
      headers: {
        "Content-Type": "application/json",
        Accept: "application/json",
        "X-CSRFToken": document.querySelector('meta[name="csrf-token"]').content,
        ...headers,
      },
      body: JSON.stringify(body),
    });
  } catch {
    throw new Refusal({ error: "offline", error_description: texts.offline });
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refusal(answer);
  return answer;
}

const bytes = (text) => Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
const text = (buffer) =>
  btoa(String.fromCharCode(...new Uint8Array(buffer))).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");

const described = (list = []) => list.map((item) => ({ ...item, id: bytes(item.id) }));

// Overlapping calls of `ask` may be answered in another order than they were made. Only the last one's outcome counts: the
// others are refused as "renewed", with these words.
export function lastOnly(ask, words) {
  let last = 0;
  return async () => {
    const number = ++last;
    const [outcome] = await Promise.allSettled([ask()]);
    if (number !== last) throw new Refusal({ error: "renewed", error_description: words });
    if (outcome.status === "rejected") throw outcome.reason;
    return outcome.value;
  };
}

export const available = () => Boolean(window.PublicKeyCredential && navigator.credentials);

async function ask(start) {
  if (!available()) throw new Refusal({ error: "no_passkeys", error_description: texts.noPasskeys });
  try {
    return await start();
  } catch (error) {
    const known = { NotAllowedError: texts.cancelled, InvalidStateError: texts.known, AbortError: texts.cancelled };
    throw new Refusal({ error: error.name, error_description: known[error.name] || texts.failed });
  }
}

export async function sign(options) {
  const publicKey = {
    ...options,
    challenge: bytes(options.challenge),
    allowCredentials: described(options.allowCredentials),
  };
  const credential = await ask(() => navigator.credentials.get({ publicKey }));
  const { response } = credential;
  return {
    id: credential.id,
    rawId: text(credential.rawId),
    type: credential.type,
    response: {
      clientDataJSON: text(response.clientDataJSON),
      authenticatorData: text(response.authenticatorData),
      signature: text(response.signature),
      userHandle: response.userHandle ? text(response.userHandle) : null,
    },
  };
}

// The signature that goes along with a sensitive act: good for this address, once.
export async function verify(url) {
  const { publicKey } = await post("/verify/options", { act: new URL(url, location.href).pathname });
  return sign(publicKey);
}

export async function create(options) {
  const publicKey = {
    ...options,
    challenge: bytes(options.challenge),
    user: { ...options.user, id: bytes(options.user.id) },
    excludeCredentials: described(options.excludeCredentials),
  };
  const credential = await ask(() => navigator.credentials.create({ publicKey }));
  const { response } = credential;
  return {
    id: credential.id,
    rawId: text(credential.rawId),
    type: credential.type,
    response: {
      clientDataJSON: text(response.clientDataJSON),
      attestationObject: text(response.attestationObject),
      transports: response.getTransports ? response.getTransports() : [],
    },
  };
}

export function announce(message) {
  document.getElementById("alert").replaceChildren();
  document.getElementById("status").textContent = message;
}

// `items` are sentences of the server: what changed, say.
export function complain(message, items = []) {
  const alert = document.getElementById("alert");
  const line = document.createElement("p");
  line.textContent = message;
  alert.replaceChildren(line);
  if (items.length) {
    const list = document.createElement("ul");
    list.append(...items.map((item) => Object.assign(document.createElement("li"), { textContent: item })));
    alert.append(list);
  }
  alert.scrollIntoView({ block: "nearest" });
}

// A button works where there are passkeys, while nothing is in progress, and once what it signs was read (reading.js).
// One with a text to sign can be pressed before that, since it then shows the text.
export function settle(button) {
  const unread = "unread" in button.dataset;
  const shows = "signs" in button.dataset;
  button.disabled = !available() || "busy" in button.dataset || (unread && !shows);
  if (shows) button.ariaDisabled = String(unread);
}

export async function busy(buttons, act) {
  const focused = document.activeElement;
  for (const button of buttons) {
    button.dataset.busy = "";
    settle(button);
  }
  try {
    await act();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (error.code === "sign_in_required") location.reload();
    complain(error.message, error.body.changes || error.body.dangerous || []);
  } finally {
    for (const button of buttons) {
      delete button.dataset.busy;
      settle(button);
    }
    // A disabled button drops the focus; who works by keyboard goes on where they were.
    if (buttons.includes(focused)) focused.focus({ preventScroll: true });
  }
}
