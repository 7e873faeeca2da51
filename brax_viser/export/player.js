// Shows the rewards of episodes beside viser's player: see html.py, which defines BRAX_VISER.
(() => {
  "use strict";
  const COLOURS = [
    "#1971c2", "#e8590c", "#2f9e44", "#9c36b5", "#c92a2a", "#0c8599", "#856404", "#495057",
  ];
  // Ends of the names of curves, of which the first is shown first.
  const REWARDS = ["eval/episode_reward", "episode_reward", "sum_reward", "reward"];
  const { env, trainer, start, episodes, curves } = BRAX_VISER;
  const colourOf = (index) => COLOURS[index % COLOURS.length];

  const element = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };
  const drawn = (name, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const words = (value) => value === null || value === undefined
    ? "-" : (value || 0).toLocaleString("en", { maximumSignificantDigits: 4 });
  const span = (lists) => lists.flat().filter((value) => value !== null)
    .reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)],
      [Infinity, -Infinity]);

  // Viser's player. It tells and takes its time, s from the beginning, by its own controls.
  const time = () => {
    const bar = document.querySelector("#root [role=slider]");
    return bar ? Number(bar.getAttribute("aria-valuenow")) : 0;
  };
  const seek = (seconds) => {
    const field = document.querySelector("#root .mantine-NumberInput-input");
    if (!field) return;
    // React hears of a value only if it is set by the element's own setter.
    const set = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set;
    set.call(field, String(Math.max(seconds, 0)));
    field.dispatchEvent(new Event("input", { bubbles: true }));
  };

  // Whenever its time goes back, viser's player resets lights, fog and reflections before it sets
  // them again, which shows: the scene flashes. Every recording sets them at its beginning alone.
  const keepLights = () => {
    const bar = document.querySelector("#root [role=slider]");
    if (!bar) return false;
    let fiber = bar[Object.keys(bar).find((key) => key.startsWith("__reactFiber$"))];
    while (fiber && !fiber.memoizedProps?.value?.useEnvironment) fiber = fiber.return;
    const store = fiber?.memoizedProps.value.useEnvironment;
    if (!store?.set) return true; // another viser: it plays, and may flash
    const { set } = store;
    store.set = (change) => {
      if (!("fog" in change && "enableDefaultLights" in change)) set(change);
    };
    return true;
  };

  // A chart of lines {x, y, colour}; gaps where y is null.
  const chart = (name, lines, unit) => {
    const [left, right] = span(lines.map(({ x }) => x));
    const [low, high] = span(lines.map(({ y }) => y));
    const width = right - left || 1;
    const height = high - low;
    const down = (y) => height ? 100 * (high - y) / height : 50;
    const across = (x) => 1000 * (x - left) / width;
    const svg = drawn("svg", { viewBox: "0 -4 1000 108", preserveAspectRatio: "none" });
    for (const { x, y, colour } of lines) {
      let points = [];
      for (let i = 0; i <= x.length; i++) {
        if (i < x.length && y[i] !== null) {
          points.push(`${across(x[i]).toFixed(1)},${down(y[i]).toFixed(2)}`);
        } else if (points.length) {
          svg.append(drawn("polyline", { points: points.join(" "), stroke: colour }));
          points = [];
        }
      }
    }
    const now = element("b");
    const title = element("span", { title: name }, name);
    const range = element("div", { class: "range" });
    range.append(element("span", {}, `${words(low)} to ${words(high)}`),
      element("span", {}, `${words(left)} to ${words(right)} ${unit}`));
    const figure = element("figure", {}, element("figcaption", {}, title, now), svg, range);
    const marks = (places, kind) => {
      svg.querySelectorAll(`.${kind}`).forEach((mark) => mark.remove());
      for (const x of places) {
        if (x < left || x > right) continue;
        const at = { x1: across(x), x2: across(x), y1: -4, y2: 104, class: kind };
        svg.append(drawn("line", at));
      }
    };
    const say = (values) => now.replaceChildren(...values.map(({ value, colour }) =>
      element("span", { style: `color: ${colour}` }, words(value))));
    const at = (event) => {
      const box = svg.getBoundingClientRect();
      return left + width * Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
    };
    return { figure, svg, marks, say, at };
  };

  // Of the numbers of an episode, the one at a time; null before its first step and after its end.
  const valueAt = (times, values, when) => {
    const step = times[0] < times.at(-1) ? (times.at(-1) - times[0]) / (times.length - 1) : 1;
    const index = Math.round((when - times[0]) / step);
    return index < 0 || index >= values.length ? null : values[index];
  };

  const pane = element("aside", { id: "brax-viser" });
  pane.append(element("h1", {}, env + (trainer ? ` · ${trainer}` : "")));
  const list = element("ol", episodes.length > 1 ? {} : { class: "single" });
  episodes.forEach(({ title }, index) =>
    list.append(element("li", { style: `--colour: ${colourOf(index)}` }, title)));
  pane.append(list);

  const names = [...new Set(episodes.flatMap(({ terms }) => Object.keys(terms)))];
  const charts = names.map((name) => {
    const shown = episodes.map(({ times, terms }, index) => ({
      x: times, y: terms[name], colour: colourOf(index),
    })).filter(({ y }) => y);
    return { shown, ...chart(name, shown, "s") };
  });
  const terms = element("div", { class: "seeks" }, ...charts.map(({ figure }) => figure));
  pane.append(terms);
  for (const { svg, at } of charts) {
    const go = (event) => seek(at(event) - start);
    svg.addEventListener("pointerdown", (event) => {
      svg.setPointerCapture(event.pointerId);
      go(event);
    });
    svg.addEventListener("pointermove", (event) => {
      if (svg.hasPointerCapture(event.pointerId)) go(event);
    });
  }

  const trained = Object.keys(curves);
  if (trained.length) {
    const choice = element("select", { "aria-label": "Curve of the training" },
      ...trained.map((name) => element("option", {}, name)));
    const first = REWARDS.map((end) => trained.find((name) => name.endsWith(end))).find(Boolean);
    if (first) choice.value = first;
    const place = element("div");
    const show = () => {
      const { steps, values } = curves[choice.value];
      const one = chart("", [{ x: steps, y: values, colour: COLOURS[0] }], "steps");
      one.marks(episodes.map(({ num_steps }) => num_steps), "mark");
      place.replaceChildren(one.figure);
    };
    choice.addEventListener("change", show);
    show();
    pane.append(element("h2", {}, "Training"), choice, place);
  }

  let before = null;
  let kept = false;
  const follow = () => {
    kept ||= keepLights();
    const now = time();
    if (now !== before) {
      before = now;
      for (const { shown, marks, say } of charts) {
        marks([start + now], "cursor");
        say(shown.map(({ x, y, colour }) => ({ value: valueAt(x, y, start + now), colour })));
      }
    }
    requestAnimationFrame(follow);
  };
  document.title = `${env} · brax_viser`;
  document.body.append(pane);
  follow();
})();
