// Code and tables wider than the page scroll: they must be reachable by keyboard, but only those that do scroll.
(() => {
  "use strict";
  function mark() {
    for (const box of document.querySelectorAll("pre, .table-wrapper, div.math-wrapper, .sidebar-scroll, .toc-scroll")) {
      const style = getComputedStyle(box);
      const scrolls = (way, size, shown) => /auto|scroll/.test(style[way]) && box[size] > box[shown];
      if (scrolls("overflowX", "scrollWidth", "clientWidth") || scrolls("overflowY", "scrollHeight", "clientHeight")) {
        box.tabIndex = 0;
      } else {
        box.removeAttribute("tabindex");
      }
    }
  }
  addEventListener("load", mark);
  addEventListener("resize", mark);
})();
