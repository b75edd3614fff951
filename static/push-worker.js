// Shows pushes and opens our page when one is pressed. It handles nothing else: it controls no page and keeps no copy
// of one. Its scope is /static/.

const GENERIC = { text: "Open AgentAuth to see what is waiting for you.", page: "/approvals/", tag: "generic" };

// What a push says, if it is one of ours and not too late. Browsers decrypt pushes and drop what is not encrypted for
// them; but a push service can send one without content, or one again.
function read(data) {
  try {
    const { text, page, tag, until } = data.json();
    const texts = [text, page, tag].every((each) => typeof each === "string");
    return texts && /^\/([a-z0-9-]+\/)+$/.test(page) && Date.now() / 1000 < until ? { text, page, tag } : GENERIC;
  } catch {
    return GENERIC;
  }
}

self.addEventListener("push", (event) => {
  const { text, page, tag } = read(event.data);
  const options = { body: text, tag, renotify: true, icon: "/static/icon-192.png", data: { page } };
  event.waitUntil(self.registration.showNotification("AgentAuth", options));
});

self.addEventListener("notificationclick", (event) => {
  event.notification.close();
  event.waitUntil(self.clients.openWindow(new URL(event.notification.data.page, self.location.origin).href));
});
