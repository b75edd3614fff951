// What the keyboard does on a page: looking.py evaluates this file there, then calls it.

window.keyboard = (() => {
  const called = (each) => each.outerHTML.slice(0, 90);

  // What Tab stops at, in the order of the document; of radio buttons, the first of each group.
  const controls = () => {
    const radios = new Set();
    return [...(document.querySelector("dialog:modal") ?? document).querySelectorAll(
      "a[href], button, input, select, textarea, summary, [tabindex]")].filter((each) =>
      each.tabIndex >= 0 && !each.matches(":disabled") &&
      each.checkVisibility({ visibilityProperty: true }) &&
      !(each.type === "radio" && (radios.has(each.name) || !radios.add(each.name))));
  };

  // A line of 2 px at least, which is not transparent.
  const isRing = (style) => style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 &&
    !/(, 0|\/ 0)\)$/.test(style.outlineColor);

  // For Tab pressed through the whole page: notes each stop.
  const watch = () => {
    window.stops = new Map();
    document.addEventListener("focusin", ({ target }) => {
      const box = target.getBoundingClientRect();
      stops.set(target, isRing(getComputedStyle(target)) && box.width > 0 && box.height > 0);
    });
    window.wanted = controls();
    return wanted.length;
  };

  const missed = () => {
    const asRadio = (each) => each.type === "radio" &&
      [...stops.keys()].some((stop) => stop.name === each.name);
    return [
      ...wanted.filter((each) => !stops.has(each) && !asRadio(each))
        .map((each) => `Tab never reaches ${called(each)}`),
      ...[...stops].filter(([, seen]) => !seen).map(([each]) => `focus unseen: ${called(each)}`),
    ];
  };

  const outline = ({ outlineStyle, outlineWidth, outlineColor }) =>
    `${outlineStyle} ${outlineWidth} ${outlineColor}`;

  // The middle of what is shown of a control, or of an inline one's first line: within the window
  // and the boxes that scroll.
  const middle = (each) => {
    const found = [each.getClientRects()[0] ?? each.getBoundingClientRect(),
      { left: 0, top: 0, right: innerWidth, bottom: innerHeight }];
    for (let box = each.parentElement; box; box = box.parentElement) {
      const clips = !["body", "html"].includes(box.localName) &&
        getComputedStyle(box).overflow !== "visible";
      if (clips) found.push(box.getBoundingClientRect());
    }
    const most = (side) => Math.max(...found.map((box) => box[side]));
    const least = (side) => Math.min(...found.map((box) => box[side]));
    return [(most("left") + least("right")) / 2, (most("top") + least("bottom")) / 2];
  };

  // Gives one control the focus, as Tab does; says what is wrong then.
  const unseen = (each) => {
    const before = outline(getComputedStyle(each));
    each.focus({ focusVisible: true });
    if (document.activeElement !== each) return ["takes no focus"];
    const style = getComputedStyle(each);
    const found = !isRing(style) || outline(style) === before ? ["focus unseen"] : [];
    // On top there: the control, or a part of it. Else it is clipped, covered or off the window.
    const top = document.elementFromPoint(...middle(each));
    const isShown = top && each.contains(top) && each.checkVisibility({ opacityProperty: true });
    return isShown ? found : [...found, `focus behind ${top ? called(top) : "the edge"}`];
  };

  const isLoose = (each) => Boolean(each) &&
    (/fixed|sticky/.test(getComputedStyle(each).position) || isLoose(each.parentElement));

  // Whether a reader meets `b` before `a`: in the same line further left, or in a line above it,
  // unless that is the next column.
  const isBefore = (b, a) => {
    const inLine = b.top < a.bottom - 1 && b.bottom > a.top + 1;
    return inLine ? b.right <= a.left + 1 : b.bottom <= a.top + 1 && b.left < a.right - 1;
  };

  // Neighbours in the order. Landmarks are read one by one, in no fixed order, so each is compared
  // within; what is fixed or sticky has no place in it.
  const misplaced = (found) => {
    const landmark = (each) => each.closest("header, nav, main, footer");
    const flow = found.filter((each) => !isLoose(each))
      .map((each) => ({ each, within: landmark(each), box: each.getBoundingClientRect() }));
    return flow.flatMap((later, at) => {
      const { each, within, box } = flow[at - 1] ?? {};
      return each && within === later.within && isBefore(later.box, box)
        ? [`on screen before ${called(each)}: ${called(later.each)}`] : [];
    });
  };

  // Tab follows the order of the document, as long as no tabindex is positive.
  const order = () => [
    ...[...document.querySelectorAll("[tabindex]")].filter((each) => each.tabIndex > 0)
      .map((each) => `positive tabindex: ${called(each)}`),
    ...misplaced(controls()),
  ];

  // Press Tab once before: from then on the browser shows the focus of scripts as that of keys.
  const focus = () => {
    document.activeElement.blur();
    const faults = controls().flatMap((each) =>
      unseen(each).map((fault) => `${fault}: ${called(each)}`));
    document.activeElement.blur();
    scrollTo(0, 0);
    return faults;
  };

  return { watch, missed, order, focus };
})();
