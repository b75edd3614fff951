// The form that uploads a logo: the file is the body of the request, since the server reads no
// multipart uploads.

import { busy, Refusal, texts } from "./passkey.js";

const form = document.querySelector("form[data-upload]");
const [button] = form.querySelectorAll("button");
const file = form.elements.picture;
button.disabled = false;

async function upload() {
  let response;
  try {
    response = await fetch(form.dataset.upload, {
      method: "POST",
      credentials: "same-origin",
      headers: {
        "Content-Type": "application/octet-stream",
        Accept: "application/json",
        "X-CSRFToken": document.querySelector('meta[name="csrf-token"]').content,
      },
      body: file.files[0],
    });
  } catch {
    throw new Refusal({ error: "offline", error_description: texts.offline });
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refusal(answer);
  location.assign(answer.next);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  busy([button], upload);
});
