// The time bar below the scene, which timeline.py answers. Runs in the page, before viser's client.
(() => {
  "use strict";
  const root = document.getElementById("root");
  if (!root) return; // a page of another viser: it goes on without a bar

  const KINDS = ["best", "worst", "fell", "random"]; // each has a lane, from the top
  const ENDED = { terminated: "terminated", truncated: "time limit", nonfinite: "NaN or Inf" };
  const MOST_LINES = 8;
  const SPEEDS = [0.1, 0.25, 0.5, 1, 2, 4, 8, 16];
  const LANE = 5; // px
  const REACH = 7; // px around a mark that count as a hit
  const LEAST_PAST = 0.6; // least share of the bar for the past
  const IDLE_MS = 1000, READING_MS = 150, LOST_MS = 4000;

  // Behind a proxy the page has a path of its own; in a frame its token is part of that.
  const base = location.pathname.replace(/[^/]*\.html$/, "").replace(/\/?$/, "/");
  // A page's own replay has a path below that of the shared page: relay.py.
  const [, shared] = base.match(/^(.*\/)own\/[a-z0-9]{8,16}\/$/) || [];

  const bar = document.createElement("section");
  bar.id = "brax-viser-bar";
  bar.setAttribute("aria-label", "Time bar");
  // "Live" and "Replay", which the head says too, are drawn by the style: the page's text has them once.
  bar.innerHTML = `
    <div class="shows" role="group">
      <button class="live" aria-label="Live" title="Shows the robots as they train"></button>
      <button class="replay" aria-label="Replay"
        title="Plays the newest recorded episodes in their place; the training goes on"></button>
    </div>
    <select class="plot" aria-label="Curve"
      title="Which curve is drawn here, and in the tab Curves"></select>
    <div class="hint"></div>
    <div class="transport">
      <button class="reverse" aria-label="Play backwards" title="Plays backwards (Shift+J)"></button>
      <button class="back" aria-label="One step back" title="One step back (J)"></button>
      <button class="play" title="Plays or pauses (K)"></button>
      <button class="on" aria-label="One step on" title="One step on (L)"></button>
      <select class="speed" aria-label="Replay speed"
        title="As a multiple of the robot's own speed"></select>
      <button class="loop" aria-label="Loop" title="Begins again at the end"></button>
    </div>
    <div class="track" role="slider" tabindex="0" aria-label="Step of the training">
      <i class="past"></i><svg aria-hidden="true"></svg><i class="cursor"></i><i class="head"></i>
    </div>
    <div class="line" role="slider" tabindex="0" aria-label="Moment of the episode, s">
      <i class="done"></i><i class="knob"></i>
    </div>
    <div class="text"><b class="step"></b><span class="which"></span><span class="moment"></span>
      <button class="own"></button></div>
    <div class="tip"></div>`;
  document.body.append(bar);
  document.documentElement.classList.add("brax-viser-timed");
  const find = (name) => bar.querySelector(`.${name}`);
  const [track, line, tip, svg] = [find("track"), find("line"), find("tip"), bar.querySelector("svg")];
  const shapes = {};
  const LINES = Array.from({ length: MOST_LINES }, (_, i) => `line${i}`); // as in the tab Curves
  for (const name of ["rest", "area", ...LINES, "points", "holds", "now", ...KINDS]) {
    shapes[name] = svg.appendChild(document.createElementNS(svg.namespaceURI, "path"));
    shapes[name].setAttribute("class", name);
  }

  // The link to a page with its own replay, and the way back.
  const own = find("own");
  const [label, hint] = shared
    ? [location.hash === "#recorded" ? "Shared page" : "Live page", "Back to the page that all share"]
    : ["Replay on my own", "Opens a page whose replay is yours alone; this one stays as it is"];
  own.setAttribute("aria-label", label);
  own.classList.toggle("back", Boolean(shared));
  const made = () =>
    Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => (byte % 36).toString(36)).join("");
  own.addEventListener("click", () => {
    if (shared) location.assign(shared);
    else window.open(`${base}own/${made()}/${told.live ? "" : "#recorded"}`, "_blank", "noopener");
  });

  // The server.
  const parts = {}; // curves, plots, marks and holds, each as it came last, with its version
  const of = (part) => (parts[part] ? parts[part].of : []);
  const plot = () => (parts.curves ? parts.curves.of : { what: "", lines: [] });
  const colour = ([label], i) => (label === "evaluation" ? 1 : i); // also where it is alone
  let told = null; // the last answer
  let since = 0; // about when it was given, ms
  let asked = 0, used = 0; // answers can overtake each other
  let timer = 0;

  const ask = async (name, query = {}, headers = {}) => {
    const number = ++asked, began = performance.now();
    const versions = Object.entries(parts).map(([part, { version }]) => [part, version]);
    const address = `${base}api/${name}?${new URLSearchParams([...versions, ...Object.entries(query)])}`;
    const answer = await fetch(address, { cache: "no-store", headers });
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error);
    if (number < used) return;
    used = number;
    for (const part of ["curves", "plots", "marks", "holds"]) if (found[part]) parts[part] = found[part];
    [told, since] = [found, (began + performance.now()) / 2];
    show();
  };

  const again = (ms) => {
    clearTimeout(timer);
    timer = setTimeout(poll, ms);
  };
  const poll = async () => {
    if (document.hidden) return; // until it is seen again
    let wait = IDLE_MS;
    try {
      if (!sending) await ask("timeline");
      bar.classList.remove("lost");
      if (told && told.replay.reading) wait = READING_MS;
    } catch {
      bar.classList.add("lost"); // browser.js says why
      wait = LOST_MS;
    }
    again(wait);
  };
  document.addEventListener("visibilitychange", () => again(0));

  const waiting = [];
  let sending = false;
  const send = async (name, query = {}) => {
    // While something is dragged, only the newest place counts.
    const last = waiting.at(-1);
    if (last && last.name === name && ["go", "seek"].includes(name)) waiting.pop();
    waiting.push({ name, query });
    if (sending) return;
    sending = true;
    while (waiting.length) {
      const next = waiting.shift();
      try {
        await ask(`replay/${next.name}`, next.query, { "X-Brax-Viser": "1" });
      } catch (error) {
        find("hint").textContent = error.message;
      }
    }
    sending = false;
    again(told && told.replay.reading ? READING_MS : IDLE_MS);
  };

  // Words.
  const count = (number) => {
    const [limit, unit] = [[1e9, " G"], [1e6, " M"], [1e3, " k"]].find(([x]) => number >= x) || [1, ""];
    return unit ? `${+(number / limit).toPrecision(3)}${unit}` : `${Math.round(number)}`;
  };
  const value = (number) => (Math.abs(number) >= 1e4 ? count(number) : (number || 0).toLocaleString("en", { maximumSignificantDigits: 4 }));
  const row = (textContent) => Object.assign(document.createElement("div"), { textContent });
  const several = ({ length }, what) => `${length} ${what}${length === 1 ? "" : "s"}`;
  const seconds = (s, of) => s.toFixed(of < 10 ? 2 : 1);
  const about = ([, env, total, length, ended, kept]) =>
    `${kept.join(", ")}: env ${env}, return ${total === null ? "NaN" : value(total)}, ` +
    `${length.toFixed(1)} s, ${ENDED[ended]}`;

  // Places along the bar, from 0 to 1. While most is still to come, that is drawn shorter.
  const scale = () => {
    const now = told.now || 1, whole = Math.max(told.end || 0, now);
    const past = whole > now ? Math.max(now / whole, told.now ? LEAST_PAST : 0) : 1;
    const place = (step) =>
      step <= now ? (step / now) * past : past + ((step - now) / (whole - now)) * (1 - past);
    const step = (at) =>
      at <= past ? (at / past) * now : now + ((at - past) / (1 - past)) * (whole - now);
    return { past, place, step };
  };
  const nearest = (all, distance) =>
    all.reduce((best, one) => (best && distance(best) <= distance(one) ? best : one), null);
  const lane = (kind, height) => height - (KINDS.length - kind - 0.5) * LANE - 1;

  const draw = () => {
    const { width, height } = track.getBoundingClientRect();
    if (!told || !width) return;
    const { past, place } = scale();
    const x = (step) => +(place(step) * width).toFixed(1);
    const floor = height - (of("marks").length ? KINDS.length * LANE + 4 : 3);
    const { lines } = plot(), values = lines.flatMap(([, points]) => points.map(([, y]) => y));
    const low = Math.min(...values), high = Math.max(...values);
    const y = (v) => +(4 + (floor - 6) * (high > low ? (high - v) / (high - low) : 0.5)).toFixed(1);
    const set = (name, d) => shapes[name].setAttribute("d", d);
    const trace = (points) => points.map(([s, v], i) => `${i ? "L" : "M"}${x(s)} ${y(v)}`).join("");
    const dots = (places) => places.map(([px, py]) => `M${px} ${py}h0`).join("");
    const drawn = []; // points, by colour
    lines.forEach((one, i) => { drawn[colour(one, i)] = one[1]; });
    const main = drawn[0] || [], first = main[0], end = main.at(-1);
    const evaluations = (lines.find(([label]) => label === "evaluation") || [, []])[1];
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    set("area", first ? `${trace(main)}L${x(end[0])} ${floor}L${x(first[0])} ${floor}Z` : "");
    LINES.forEach((name, i) => set(name, trace(drawn[i] || [])));
    set("points", dots(evaluations.map(([s, v]) => [x(s), y(v)])));
    set("rest", past < 1 ? `M${past * width} ${floor}H${width}` : "");
    set("holds", of("holds").map((s) => `M${x(s)} 2V${floor}`).join(""));
    const newest = nearest([end, evaluations.at(-1)].filter(Boolean), ([s]) => told.now - s);
    set("now", dots([[x(told.now), newest ? y(newest[1]) : floor]]));
    KINDS.forEach((kind, i) => {
      const steps = of("marks").filter(([, all]) => all.some((mark) => mark[5].includes(kind)));
      set(kind, dots(steps.map(([step]) => [x(step), lane(i, height)])));
    });
    find("past").style.width = `${100 * past}%`;
    find("head").style.left = `${100 * place(told.replay.step || 0)}%`;
  };
  new ResizeObserver(draw).observe(track);

  // What is shown, and the moment within it.
  let dragged = null; // s, while the line is dragged
  const position = () => {
    const { position, playing, backwards, reading, speed, seconds, loop } = told.replay;
    if (dragged !== null) return dragged;
    const moved = playing && !reading ? ((performance.now() - since) / 1000) * speed : 0;
    const at = position + (backwards ? -moved : moved);
    if (at >= 0 && at <= seconds) return at;
    return loop && seconds ? ((at % seconds) + seconds) % seconds : at < 0 ? 0 : seconds;
  };
  const showMoment = () => {
    const { seconds: whole, reading, active, playing } = told.replay;
    const at = position(), share = `${whole ? (100 * at) / whole : 0}%`;
    find("done").style.width = find("knob").style.left = share;
    line.setAttribute("aria-valuenow", at.toFixed(2));
    line.setAttribute("aria-valuemax", whole);
    find("moment").textContent = reading ? "reading" : `${seconds(at, whole)} / ${seconds(whole, whole)} s`;
    return active && playing && dragged === null;
  };
  let moving = false;
  const move = () => {
    moving = showMoment();
    if (moving) requestAnimationFrame(move);
  };

  let offered = null; // the plots that can be chosen
  const show = () => {
    const { replay, live, steers, now, end, held, phase } = told, { active } = replay;
    const many = of("marks").length;
    bar.dataset.shows = active || !live ? "replay" : "live";
    bar.classList.toggle("recorded", !live);
    bar.classList.toggle("looks", !steers);
    document.documentElement.classList.toggle("brax-viser-looks", !steers);
    bar.classList.toggle("known", many > 0);
    bar.classList.toggle("held", held);
    bar.classList.toggle("still", ["waiting", "compiling"].includes(phase));
    for (const button of bar.querySelectorAll("button, select")) button.disabled = !steers;
    find("replay").disabled = !steers || !many;
    // Onlookers too may have a replay of their own.
    const refused = shared ? null : !many ? "No episode is recorded yet" : told.own_refused;
    own.disabled = Boolean(refused);
    own.title = refused || hint;
    find("live").setAttribute("aria-pressed", !active);
    find("replay").setAttribute("aria-pressed", active);
    find("play").setAttribute("aria-label", replay.playing ? "Pause" : "Play");
    find("reverse").setAttribute("aria-pressed", replay.playing && replay.backwards);
    find("loop").setAttribute("aria-pressed", replay.loop);
    const plots = of("plots"), choice = find("plot");
    choice.hidden = !plots.length;
    if (plots !== offered) choice.replaceChildren(...plots.map((name) => new Option(name)));
    offered = plots;
    if (document.activeElement !== choice) choice.value = plot().what;
    const speeds = [...new Set([...SPEEDS, replay.speed])].sort((a, b) => a - b);
    if (find("speed").options.length !== speeds.length) {
      find("speed").replaceChildren(...speeds.map((s) => new Option(`${s}×`, s)));
    }
    if (document.activeElement !== find("speed")) find("speed").value = replay.speed;
    const alone = replay.episodes.find(([key]) => key === replay.only);
    const shown = replay.policies ? "two policies"
      : alone ? `env ${alone[1]}, ${alone[5][0]}` : several(replay.episodes, "episode");
    find("step").textContent = replay.policies ? replay.policies.map(count).join(" and ")
      : `step ${count(active ? replay.step : now)}`;
    find("which").textContent = active ? shown : end ? `of ${count(end)}` : "";
    const over = { done: "ended", failed: "failed" }[phase];
    bar.classList.toggle("over", Boolean(over));
    find("live").setAttribute("aria-label", over ? "The end" : "Live");
    find("live").title = over ? "Shows the robots after the training" : "Shows the robots as they train";
    if (!active) find("moment").textContent = (live && (held ? "held" : over)) || "";
    find("hint").textContent = !many ? "no episode is recorded yet"
      : `${many} recording${many > 1 ? "s" : ""}${steers ? ": click on a dot to see it again" : ""}`;
    track.setAttribute("aria-valuemax", Math.max(now, end || 0));
    track.setAttribute("aria-valuenow", active ? replay.step : now);
    track.setAttribute("aria-valuetext", find("step").textContent);
    draw();
    if (active && !moving) move();
  };

  // The pointer.
  const at = (event, element) => {
    const { left, width } = element.getBoundingClientRect();
    return Math.min(Math.max((event.clientX - left) / width, 0), 1);
  };
  /** The step below the pointer, the recording that is nearest, and the episode whose mark is hit. */
  const pointed = (event) => {
    const { top, height, width } = track.getBoundingClientRect(), { place, step } = scale();
    const share = at(event, track);
    const recording = nearest(of("marks"), ([s]) => Math.abs(place(s) - share));
    const near = ([s]) => Math.abs(place(s) - share) * width <= REACH;
    const kind = Math.floor((event.clientY - top - lane(0, height)) / LANE + 0.5);
    const episode = recording && near(recording) &&
      recording[1].find((mark) => mark[5].includes(KINDS[kind]));
    return { share, step: step(share), recording, episode, held: of("holds").some((s) => near([s])) };
  };
  const valueAt = (points, step) => {
    const after = points.findIndex(([s]) => s >= step);
    if (after < 0 || (after === 0 && points[0][0] > step)) return null;
    const [s1, v1] = points[after], [s0, v0] = points[Math.max(after - 1, 0)];
    return s1 > s0 ? v0 + ((v1 - v0) * (step - s0)) / (s1 - s0) : v1;
  };
  const point = (event) => {
    if (!told) return;
    const { share, step, recording, episode, held } = pointed(event);
    const { what, lines: curves } = plot();
    const values = curves.map((one, i) => [one[0], valueAt(one[1], step), colour(one, i)])
      .filter(([, v]) => v !== null).map(([label, v, i]) =>
        Object.assign(row((label === what ? "" : `${label} `) + value(v)), { className: `value of${i}` }));
    const known = row(`${what}: `);
    known.append(...values);
    const does = !recording || !told.steers ? null : episode ? "Click: this episode alone"
      : `Click: the ${several(recording[1], "episode")} of step ${count(recording[0])}`;
    const lines = [
      `step ${count(step)}${step > told.now ? ", to come" : ""}`, values.length && known,
      episode && about(episode), held && "the training was held here",
    ].filter(Boolean);
    tip.replaceChildren(...[...lines, does || ""].map((one) => (one.nodeType ? one : row(one))));
    const { left, width } = track.getBoundingClientRect(), half = tip.offsetWidth / 2 + 4;
    tip.style.left = `${Math.min(Math.max(left + share * width, half), innerWidth - half)}px`;
    find("cursor").style.left = `${100 * share}%`;
    bar.classList.add("pointed");
  };
  let pressed = null;
  track.addEventListener("pointerdown", (event) => {
    if (event.button || !told || !told.steers || !of("marks").length) return;
    track.setPointerCapture(event.pointerId);
    pressed = { x: event.clientX, step: null };
  });
  track.addEventListener("pointermove", (event) => {
    point(event);
    if (!pressed || (pressed.step === null && Math.abs(event.clientX - pressed.x) < 4)) return;
    const [step] = pointed(event).recording;
    if (step !== pressed.step) send("go", { step });
    pressed.step = step;
  });
  track.addEventListener("pointerup", (event) => {
    if (!pressed) return;
    const { episode, step } = pointed(event);
    if (pressed.step === null) send("go", episode ? { episode: episode[0] } : { step });
    pressed = null;
  });
  track.addEventListener("pointercancel", () => { pressed = null; });
  track.addEventListener("pointerleave", () => bar.classList.remove("pointed"));

  const drag = (event) => {
    dragged = at(event, line) * told.replay.seconds;
    send("seek", { seconds: dragged });
    showMoment();
  };
  line.addEventListener("pointerdown", (event) => {
    if (event.button || !told || !told.steers) return;
    line.setPointerCapture(event.pointerId);
    drag(event);
  });
  line.addEventListener("pointermove", (event) => { if (dragged !== null) drag(event); });
  for (const end of ["pointerup", "pointercancel"]) line.addEventListener(end, () => {
    if (dragged === null) return;
    Object.assign(told.replay, { position: dragged, playing: false });
    dragged = null;
  });

  find("live").addEventListener("click", () => send("live"));
  find("replay").addEventListener("click", () => told.replay.active || send("toggle"));
  find("play").addEventListener("click", () => send("toggle"));
  find("reverse").addEventListener("click", () => send("play", { backwards: 1 }));
  find("back").addEventListener("click", () => send("step", { n: -1 }));
  find("on").addEventListener("click", () => send("step", { n: 1 }));
  find("loop").addEventListener("click", () => send("loop", { on: told.replay.loop ? 0 : 1 }));
  const chosen = (name, use) => {
    find(name).addEventListener("change", ({ target }) => {
      use(target.value);
      target.blur();
    });
    find(name).addEventListener("click", (event) => event.stopPropagation()); // it keeps the focus
  };
  chosen("speed", (speed) => send("speed", { speed }));
  chosen("plot", (what) => send("curve", { what }));

  // Keys, for users who reach the bar with Tab. viser's handlers do not get the keys used here.
  const KEYS = {
    track: {
      ArrowLeft: () => send("turn", { by: -1 }), ArrowRight: () => send("turn", { by: 1 }),
      Home: () => send("go", { step: 0 }), End: () => send("go", { step: told.now }),
    },
    line: {
      ArrowLeft: () => send("step", { n: -1 }), ArrowRight: () => send("step", { n: 1 }),
      Home: () => send("seek", { seconds: 0 }), End: () => send("seek", { seconds: told.replay.seconds }),
    },
  };
  bar.addEventListener("keydown", (event) => {
    const does = (KEYS[event.target.className] || {})[event.key];
    if (does && told && told.steers) does();
    if (does) event.preventDefault();
    if (does || event.key === " " || event.key === "Enter") event.stopPropagation();
  });
  poll();
})();
