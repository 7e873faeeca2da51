// Keeps the choices of a page's user over a lost connection and a restart of the training: camera,
// tabs, and the values of controls. Runs in the page, before viser's client, which starts from
// scratch each time it is connected.
(() => {
  "use strict";
  const KEY = "brax_viser_kept";
  const CONTROLS = ["Checkbox", "Dropdown", "Number", "Slider", "Text"].map((kind) => `Gui${kind}Message`);
  const MOVES = "KeyW KeyA KeyS KeyD KeyQ KeyE ArrowUp ArrowDown ArrowLeft ArrowRight".split(" ");
  const SETTLE_MS = 500; // until the server knows a page that has told its camera
  const TABS_MS = 60000, LOOK_MS = 200;
  const NEAR = 1e-3; // scene units

  const widgets = new Map(); // the server's controls, by uuid
  const chosen = new Map(); // the last values that the user has set, by kind and label of the control
  let camera = null; // as the page has told it last
  let touched = false, moved = false; // by the user, since the server has placed the camera
  let back = null; // what was chosen before, while the page comes back and until its user does anything
  const unsent = new Map(); // values that a new server does not know yet, by uuid
  let isReplayed = false, isKnown = false, wasConnected = false;

  const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
  const apart = (one, other) =>
    [...one.position, ...one.look_at].some(
      (x, at) => Math.abs(x - [...other.position, ...other.look_at][at]) > NEAR,
    );
  const tabs = () => [...document.querySelectorAll("[role=tab]")];
  const isSelected = (tab) => tab.getAttribute("aria-selected") === "true";
  const selected = () => tabs().filter(isSelected).map((tab) => tab.textContent);

  // What the page sends.
  const told = (message, worker) => {
    if (message.type === "ViewerCameraMessage") {
      const { position, look_at } = message;
      moved ||= touched && camera !== null && apart(camera, message);
      camera = { position, look_at };
      if (!isKnown) setTimeout(() => give(worker), SETTLE_MS);
      isKnown = true;
    } else if (message.type === "GuiUpdateMessage" && "value" in message.updates) {
      const { name, options } = widgets.get(message.uuid) || {};
      if (name) chosen.set(name, { uuid: message.uuid, options, value: message.updates.value });
    }
  };
  const give = (worker) => {
    for (const [uuid, value] of unsent) {
      const message = { type: "GuiUpdateMessage", uuid, updates: { value } };
      worker.postMessage({ type: "send", message });
    }
    unsent.clear();
    if (!back || !back.camera) return;
    // Viser's client has gone to the initial camera, as it does whenever it is connected.
    const { position, look_at } = back.camera;
    const messages = [
      { type: "SetCameraPositionMessage", position, initial: false },
      { type: "SetCameraLookAtMessage", look_at, initial: false },
    ];
    worker.dispatchEvent(new MessageEvent("message", { data: { type: "message_batch", messages } }));
  };

  // What the page is sent. Viser's client sees the messages as they are left here.
  const added = (message) => {
    const { uuid, props } = message;
    const widget = { name: `${message.type} ${props.label}`, options: props.options };
    widgets.set(uuid, widget);
    const before = back && back.chosen.get(widget.name);
    if (!before || before.uuid === uuid) return; // the same server, which knows
    if (props.disabled || !same(before.options, props.options)) {
      chosen.delete(widget.name);
      return;
    }
    chosen.set(widget.name, { ...before, uuid });
    if (same(before.value, message.value)) return;
    message.value = before.value;
    unsent.set(uuid, before.value);
  };
  const updated = ({ uuid, updates }) => {
    const widget = widgets.get(uuid);
    if (!widget) return;
    if ("options" in updates) widget.options = updates.options;
    if (!("value" in updates)) return;
    if (unsent.has(uuid) && !isReplayed) updates.value = unsent.get(uuid);
    const last = chosen.get(widget.name);
    // Another page, or a script, has set it since.
    if (last && last.uuid === uuid && !same(last.value, updates.value)) chosen.delete(widget.name);
  };
  const placed = (message) => {
    if (!back || !back.camera) {
      if (!message.initial) touched = moved = false;
    } else if (message.type === "SetCameraPositionMessage") message.position = back.camera.position;
    else message.look_at = back.camera.look_at;
  };
  const heard = (message) => {
    if (CONTROLS.includes(message.type)) added(message);
    else if (message.type === "GuiUpdateMessage") updated(message);
    else if (message.type === "ReplayDoneMessage") isReplayed = true;
    else if (/^SetCamera(Position|LookAt)Message$/.test(message.type)) placed(message);
  };

  const connected = () => {
    if (wasConnected) back = { chosen: new Map(chosen), tabs: selected(), camera: moved ? camera : null };
    wasConnected = true;
    isReplayed = isKnown = false;
    widgets.clear();
    unsent.clear();
    point(null);
    if (back) showTabs(back.tabs, new Set(tabs()), performance.now() + TABS_MS);
  };
  const showTabs = (names, old, until) => {
    if (!back || performance.now() > until) return;
    const found = tabs().filter((tab) => !old.has(tab) && names.includes(tab.textContent));
    // Viser's tabs take a pointer, which may begin to drag them, or this key.
    const enter = { key: "Enter", bubbles: true };
    for (const tab of found) if (!isSelected(tab)) tab.dispatchEvent(new KeyboardEvent("keydown", enter));
    if (found.length < names.length) setTimeout(() => showTabs(names, old, until), LOOK_MS);
  };
  // Viser reads from the address where a page begins.
  const point = (at) => {
    const address = new URL(location.href);
    const parts = { initialCameraPosition: at && at.position, initialCameraLookAt: at && at.look_at };
    for (const [name, place] of Object.entries(parts)) {
      if (place) address.searchParams.set(name, place.join(","));
      else address.searchParams.delete(name);
    }
    if (address.href !== location.href) history.replaceState(null, "", address);
  };

  window.Worker = class extends window.Worker {
    constructor(...args) {
      super(...args);
      this.addEventListener("message", ({ data }) => {
        if (!data) return;
        if (data.type === "connected") connected();
        else if (data.type === "message_batch") data.messages.forEach(heard);
      });
    }
    postMessage(data, ...more) {
      if (data && data.type === "send") told(data.message, this);
      super.postMessage(data, ...more);
    }
  };

  const act = (event) => {
    if (!event.isTrusted) return;
    back = null;
    const onCanvas = event.target instanceof HTMLCanvasElement;
    touched ||= event.type === "keydown" ? MOVES.includes(event.code) : onCanvas;
  };
  for (const kind of ["pointerdown", "wheel", "keydown"]) {
    window.addEventListener(kind, act, { capture: true, passive: true });
  }

  // browser.js reloads a page whose server is another one. A frame may have no storage.
  window.addEventListener("brax-viser-reload", () => {
    const kept = { chosen: [...chosen], tabs: selected(), camera: moved ? camera : null };
    try {
      sessionStorage.setItem(KEY, JSON.stringify(kept));
    } catch {}
  });
  try {
    const kept = JSON.parse(sessionStorage.getItem(KEY));
    sessionStorage.removeItem(KEY);
    if (kept) {
      for (const [name, value] of kept.chosen) chosen.set(name, value);
      back = { ...kept, chosen: new Map(kept.chosen) };
      if (kept.camera) {
        [camera, touched, moved] = [kept.camera, true, true];
        point(camera);
      }
    }
  } catch {}
})();
