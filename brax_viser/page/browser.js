// Runs in the page, before viser's client: see browser.py.
(() => {
  "use strict";

  // Keys. Viser ignores them while any input has the focus, even a box that was only ticked.
  const PLAIN = ["checkbox", "radio", "range", "button"];
  const OF_INPUTS = [
    " ", "Enter", "Tab", "Escape", "Home", "End", "PageUp", "PageDown",
    "ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight",
  ];
  const isInput = (at) => at instanceof HTMLInputElement;
  const takesText = (at) => at.tagName === "TEXTAREA" || at.isContentEditable ||
    (isInput(at) && !PLAIN.includes(at.type) && !at.readOnly);
  const isList = (at) => at.getAttribute("aria-haspopup") === "listbox";
  const isOpen = (at) => at.hasAttribute("aria-controls");

  // What was clicked on with the mouse gives the focus back, unless text can be typed into it.
  const giveBack = () => {
    const at = document.activeElement;
    if (at && at !== document.body && (!takesText(at) || (isList(at) && !isOpen(at)))) at.blur();
  };
  window.addEventListener("click", (event) => event.detail && setTimeout(giveBack), true);

  window.addEventListener("keydown", (event) => {
    const at = event.target;
    if (!event.isTrusted || !isInput(at)) return;
    if (takesText(at)) {
      // Enter completes what was typed.
      if (event.key === "Enter" && !isList(at)) setTimeout(() => at.blur());
    } else if (!OF_INPUTS.includes(event.key)) {
      document.body.dispatchEvent(new KeyboardEvent("keydown", event));
    }
  }, true);

  // The connection, which viser's client keeps in a worker.
  const root = document.documentElement;
  let closed = false;
  let answers = 0;
  const heard = (type) => {
    if (type !== "connected" && type !== "closed") return;
    closed = type === "closed";
    if (!closed) answers = 0;
    root.classList.toggle("brax-viser-disconnected", closed);
  };
  window.Worker = class extends Worker {
    constructor(...args) {
      super(...args);
      this.addEventListener("message", ({ data }) => heard(data && data.type));
    }
  };

  // Viser reconnects by itself where the window has the focus and the client fits the server.
  const lookForServer = async () => {
    if (!closed) return;
    try {
      const answer = await fetch(location.href, { cache: "no-store" });
      answers = answer.ok ? answers + 1 : 0;
    } catch {
      answers = 0;
    }
    if (closed && answers > (document.hasFocus() ? 2 : 0)) location.reload();
  };
  setInterval(lookForServer, 2000);
})();
