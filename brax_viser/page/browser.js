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

  // A control that was clicked with the mouse gives the focus back, unless text can be typed into it.
  const giveBack = () => {
    const at = document.activeElement;
    if (!at || at === document.body) return;
    const byKey = at.matches(":focus-visible");
    if (takesText(at) ? isList(at) && !isOpen(at) : !byKey) at.blur();
  };
  window.addEventListener("click", (event) => {
    if (!event.detail) return; // a click by key
    giveBack();
    setTimeout(giveBack); // lists close, and labels pass the focus on, after the click
  });

  // In a narrow window, where the head fills the panel, a tab that is chosen is scrolled into sight.
  window.addEventListener("click", ({ target }) => setTimeout(() => {
    const tab = target.closest("[role=tab]");
    const shown = tab && document.getElementById(tab.getAttribute("aria-controls"));
    const sheet = shown && shown.closest(".mantine-ScrollArea-viewport");
    if (!sheet || getComputedStyle(tab.parentElement).position !== "sticky") return;
    const free = sheet.getBoundingClientRect().top + tab.parentElement.offsetHeight;
    sheet.scrollTop += shown.getBoundingClientRect().top - free;
  }));

  window.addEventListener("keydown", (event) => {
    const at = event.target;
    if (event.isTrusted && isInput(at) && !takesText(at) && !OF_INPUTS.includes(event.key)) {
      document.body.dispatchEvent(new KeyboardEvent("keydown", event));
    }
  }, true);
  // Enter completes what was typed.
  window.addEventListener("keydown", ({ key, target }) => {
    if (key === "Enter" && isInput(target) && takesText(target) && !isList(target)) target.blur();
  });

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

  // Viser reconnects by itself where the window has the focus and the client fits the server. A
  // server that is just ending may answer once more: after a reload nothing here would look again.
  const lookForServer = async () => {
    if (!closed) return;
    try {
      const answer = await fetch(location.href, { cache: "no-store" });
      // 403: another viewer, with another token, for which its own page then asks.
      answers = answer.ok || answer.status === 403 ? answers + 1 : 0;
    } catch {
      answers = 0;
    }
    if (closed && answers > (document.hasFocus() ? 3 : 1)) {
      window.dispatchEvent(new Event("brax-viser-reload")); // kept.js
      location.reload();
    }
  };
  setInterval(lookForServer, 2000);
})();
