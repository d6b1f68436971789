// Two pictures of one size, one over the other, with a divider that a range input or the pointer moves.
// A classic script, so that it also works on pages opened from a disk. Without it the two pictures stand side by side.
(() => {
  "use strict";
  const ZOOMS = [["Fit", 0], ["100 %", 1], ["200 %", 2]];

  function element(name, properties = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(properties)) {
      if (key in made) made[key] = value;
      else made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  }

  const naturalWidth = (picture) => picture.naturalWidth || picture.width;

  /** Fill `container` with the comparison of two images or canvases. */
  function beforeAfter(container, before, after) {
    const line = element("div", { className: "ba-line", ariaHidden: "true" });
    const labels = [before, after].map(({ label }, i) =>
      element("span", { className: `ba-label ${i ? "ba-right" : "ba-left"}`, ariaHidden: "true" }, label));
    before.picture.classList.add("ba-before");
    after.picture.classList.add("ba-after");
    const stage = element("div", { className: "ba-stage" }, before.picture, after.picture);
    const view = element("div", { className: "ba-view" }, stage);
    const frame = element("div", { className: "ba-frame" }, view, line, ...labels);
    const range = element("input", {
      type: "range", min: 0, max: 100, step: 1, value: 50, ariaLabel: `Divider between ${before.label} and ${after.label}`,
    });
    let zoom = 0;

    function place() {
      const share = range.value / 100;
      // The divider stands still in the frame while the pictures are scrolled under it.
      const position = view.scrollLeft + share * view.clientWidth;
      after.picture.style.clipPath = `inset(0 0 0 ${(100 * position) / stage.offsetWidth}%)`;
      line.style.left = `${view.clientLeft + share * view.clientWidth}px`;
      range.ariaValueText = `${Math.round(100 * share)} % ${before.label}, ${Math.round(100 - 100 * share)} % ${after.label}`;
    }

    function setZoom(value) {
      const middle = (view.scrollLeft + view.clientWidth / 2) / stage.offsetWidth;
      const height = (view.scrollTop + view.clientHeight / 2) / stage.offsetHeight;
      zoom = value;
      stage.style.width = zoom ? `${zoom * naturalWidth(after.picture)}px` : "100%";
      container.classList.toggle("ba-zoomed", zoom > 0);
      container.classList.toggle("ba-pixels", zoom > 1);
      // What scrolls must be reachable by keyboard.
      if (zoom) {
        Object.assign(view, { tabIndex: 0, role: "region", ariaLabel: "Pictures, scrollable" });
      } else {
        ["tabindex", "role", "aria-label"].forEach((name) => view.removeAttribute(name));
      }
      for (const button of buttons) button.ariaPressed = String(Number(button.value) === zoom);
      view.scrollTo(middle * stage.offsetWidth - view.clientWidth / 2, height * stage.offsetHeight - view.clientHeight / 2);
      place();
    }

    const buttons = ZOOMS.map(([text, value]) =>
      element("button", { type: "button", value, onclick: () => setZoom(value) }, text));
    const zooms = element("div", { className: "ba-zooms", role: "group", ariaLabel: "Size of the pictures" }, ...buttons);

    function follow(event) {
      const box = view.getBoundingClientRect();
      range.value = (100 * (event.clientX - box.left - view.clientLeft)) / view.clientWidth;
      place();
    }
    view.addEventListener("pointerdown", (event) => {
      // A finger on enlarged pictures scrolls them; the range input moves the divider there. Nor do scroll bars.
      if (event.button || (zoom && event.pointerType === "touch") || event.offsetX < 0) return;
      if (event.target === view) return;
      event.preventDefault();
      view.setPointerCapture(event.pointerId);
      range.focus({ preventScroll: true });
      follow(event);
    });
    view.addEventListener("pointermove", (event) => view.hasPointerCapture(event.pointerId) && follow(event));
    view.addEventListener("scroll", place, { passive: true });
    range.addEventListener("input", place);
    new ResizeObserver(place).observe(view);

    container.classList.add("before-after", "ba-live");
    container.replaceChildren(frame, element("div", { className: "ba-controls" }, range, zooms));
    setZoom(0);
  }

  /** The pictures of a page, written as two figures with captions. */
  function upgrade() {
    for (const container of document.querySelectorAll(".before-after:not(.ba-live)")) {
      const figures = [...container.querySelectorAll("figure")].map((figure) => ({
        picture: figure.querySelector("img"),
        label: figure.querySelector(".caption-text").textContent.trim(),
      }));
      if (figures.length === 2) beforeAfter(container, ...figures);
    }
  }

  globalThis.beforeAfter = beforeAfter;
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", upgrade);
  else upgrade();
})();
