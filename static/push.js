// Settings: subscribe this browser to pushes, and mark it in the list of channels.

import { Refusal, busy, settle, verify } from "./passkey.js";

const form = document.getElementById("add-browser");
const supported = "serviceWorker" in navigator && "PushManager" in window && "Notification" in window;

const base64url = (buffer) =>
  btoa(String.fromCharCode(...new Uint8Array(buffer))).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
const bytes = (text) => Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));

async function current() {
  const registration = await navigator.serviceWorker.getRegistration(document.getElementById("notifications").dataset.worker);
  return registration?.pushManager.getSubscription();
}

async function subscribe() {
  // Asked for in the click: some browsers ask the person at no other time.
  if ((await Notification.requestPermission()) !== "granted") {
    throw new Refusal({ error: "blocked", error_description: form.dataset.blocked });
  }
  const registration = await navigator.serviceWorker.register(document.getElementById("notifications").dataset.worker);
  const options = { userVisibleOnly: true, applicationServerKey: bytes(form.elements.sender.value) };
  const manager = registration.pushManager;
  try {
    return await manager.subscribe(options);
  } catch (error) {
    if (error.name !== "InvalidStateError") throw error;
    // It is subscribed for an earlier key of ours.
    await (await manager.getSubscription())?.unsubscribe();
    return manager.subscribe(options);
  }
}

async function add() {
  let subscription;
  try {
    subscription = await subscribe();
  } catch (error) {
    if (error instanceof Refusal) throw error;
    throw new Refusal({ error: "no_subscription", error_description: form.dataset.failed });
  }
  form.elements.endpoint.value = subscription.endpoint;
  for (const name of ["p256dh", "auth"]) form.elements[name].value = base64url(subscription.getKey(name));
  form.elements.verification.value = JSON.stringify(await verify(form.getAttribute("action")));
  form.submit();
}

async function mark() {
  const subscription = await current().catch(() => null);
  if (!subscription) return;
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(subscription.endpoint));
  const mine = document.querySelector(`[data-browser="${base64url(digest)}"]`);
  if (!mine) return;
  mine.hidden = false;
  if (form) form.closest("details").hidden = true;
}

if (form) {
  form.closest("details").hidden = !supported;
  document.getElementById("no-push").hidden = supported;
  const buttons = [...form.querySelectorAll("[type=submit]")];
  for (const button of buttons) settle(button);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    busy(buttons, add);
  });
}
if (supported) mark();
