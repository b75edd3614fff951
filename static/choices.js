// What a person typed on an approval page, until it is decided: kept in this tab's session storage, under a name of the
// request and its terms, so that it survives a sign-in and never meets other terms. It is sent nowhere from there.

const PREFIX = "choices ";
const name = (form) => PREFIX + form.dataset.keptAs;

// Storage may be blocked; then nothing is kept.
function stored(use) {
  try {
    return use(sessionStorage);
  } catch {
    return null;
  }
}

const fields = (form) => [...form.elements].filter((field) => field.id && field.name && field.type !== "hidden");
const isBox = (field) => field.type === "checkbox";

function changed(field) {
  if (isBox(field)) return field.checked !== field.defaultChecked;
  return field.tagName === "SELECT" ? field.selectedIndex > 0 : field.value !== field.defaultValue;
}

export function keep(form) {
  const typed = fields(form).filter(changed).map((field) => [field.id, isBox(field) ? field.checked : field.value]);
  stored((storage) => {
    if (typed.length) storage.setItem(name(form), JSON.stringify(typed));
    else storage.removeItem(name(form));
  });
}

// Whether anything was restored.
export function restore(form) {
  const typed = JSON.parse(stored((storage) => storage.getItem(name(form))) ?? "[]");
  for (const [id, value] of typed) {
    const field = fields(form).find((each) => each.id === id);
    if (!field) continue;
    field[isBox(field) ? "checked" : "value"] = value;
    const fold = field.closest("details");
    if (fold) fold.open = true;
  }
  return typed.length > 0;
}

export const forget = (form) => stored((storage) => storage.removeItem(name(form)));

export const forgetAll = () =>
  stored((storage) => {
    for (const key of Object.keys(storage)) if (key.startsWith(PREFIX)) storage.removeItem(key);
  });
