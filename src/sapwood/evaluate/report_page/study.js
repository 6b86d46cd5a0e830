"use strict";
// Draws the items of a study, a screenful at a time, as text nodes: what models wrote is hostile text and is never parsed as HTML.
(() => {
  const data = JSON.parse(document.getElementById("study-data").textContent);
  const PAGE = 25;
  const WORDS = { worse: "▼ got worse", better: "▲ improved", wrong: "✗ both wrong", right: "✓ both right", unscored: "– not compared" };
  const form = document.getElementById("filters"), list = document.getElementById("list"), more = document.getElementById("more");
  const texts = new Array(data.items.length);
  let shown = [], drawn = 0, waiting = 0;

  function make(tag, look, ...children) {
    const node = document.createElement(tag);
    if (look) node.className = look;
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }

  function textOf(place) { // built when first searched, kept after
    if (texts[place] === undefined) {
      const item = data.items[place];
      const answers = Object.values(item.answers).map((answer) => `${answer.t ?? ""}\n${answer.x ?? ""}`);
      texts[place] = [item.id, item.asked, item.reference, item.source, item.tags.join(" "), ...answers].join("\n").toLowerCase();
    }
    return texts[place];
  }

  function matcher(words) {
    const pattern = /^\/(.+)\/$/.exec(words);
    if (pattern) {
      try {
        const compiled = new RegExp(pattern[1], "i");
        return { test: (place) => compiled.test(textOf(place)) };
      } catch (error) {
        return { broken: `no pattern: ${error.message}`, test: () => false };
      }
    }
    const parts = words.toLowerCase().split(/\s+/).filter(Boolean);
    return { test: (place) => parts.every((part) => textOf(place).includes(part)) };
  }

  function state() {
    return Object.fromEntries([...new FormData(form)].filter(([, value]) => value));
  }

  function filter() {
    const wanted = state(), words = matcher(wanted.text ?? "");
    shown = [];
    for (let place = 0; place < data.items.length; place++) {
      const item = data.items[place];
      if (wanted.status === "flipped" ? !(item.status === "worse" || item.status === "better") : wanted.status && item.status !== wanted.status) continue;
      if (wanted.tag && !item.tags.includes(wanted.tag)) continue;
      if (wanted.fault && !Object.values(item.answers).some((answer) => answer.f.includes(wanted.fault))) continue;
      if (wanted.text && !words.test(place)) continue;
      shown.push(place);
    }
    if (wanted.order === "gain") shown.reverse();
    if (wanted.order === "id") shown.sort((a, b) => (data.items[a].id < data.items[b].id ? -1 : 1));
    drawn = 0;
    list.replaceChildren();
    draw();
    document.getElementById("found").textContent = words.broken ?? `${shown.length.toLocaleString("en")} of ${data.items.length.toLocaleString("en")} items`;
    const query = new URLSearchParams(wanted).toString();
    history.replaceState(null, "", query ? `#items?${query}` : location.pathname + location.search);
  }

  function draw() {
    list.append(...shown.slice(drawn, drawn + PAGE).map(card));
    drawn = Math.min(shown.length, drawn + PAGE);
    more.hidden = drawn >= shown.length;
    more.textContent = `Show more (${(shown.length - drawn).toLocaleString("en")} left)`;
  }

  function mark(value) {
    if (value === null || value === undefined) return "not scored";
    return value >= 1 ? "✓ right" : value <= 0 ? "✗ wrong" : `${Math.round(100 * value)} %`;
  }

  function block(look, text) {
    const node = make("pre", look, text);
    if (text.length > 400) node.tabIndex = 0; // it scrolls inside: the keyboard must reach it
    return node;
  }

  // Words that the other answer lacks are marked, for a quick look; a real comparison is the reader's.
  function answerText(text, other) {
    if (text === undefined) return null;
    if (!text) return block("", "(empty answer)");
    if (!other) return block("", text);
    const theirs = new Set(other.split(/\s+/)), node = block("", "");
    for (const part of text.split(/(\s+)/)) node.append(/^\s*$/.test(part) || theirs.has(part) ? part : make("mark", "", part));
    return node;
  }

  function side(item, arm, other) {
    const answer = item.answers[arm], look = arm === data.candidate ? "mine" : "";
    if (!answer) return make("div", look, make("h4", "", arm, " · not asked"));
    const box = make("div", look, make("h4", "", arm, " · ", mark(answer.v)), answerText(answer.t, item.answers[other]?.t));
    const said = [answer.x, answer.f.length ? `errors: ${answer.f.join(", ")}` : "", answer.e === "length" ? "cut at the limit of tokens" : "", answer.e === "error" ? "the model failed" : ""];
    for (const [name, value] of Object.entries(answer.o ?? {})) said.push(`${name}: ${value === null ? "not scored" : Math.round(1000 * value) / 1000}`);
    said.push(`${answer.n} tokens, ${answer.s} s`);
    box.append(...said.filter(Boolean).map((words) => make("p", "why", words)));
    return box;
  }

  function card(place) {
    const item = data.items[place];
    const node = make("article", "one", make("p", "head", make("span", `status ${item.status}`, WORDS[item.status]), `item ${item.id}`, ...[item.tags.join(" "), item.cluster ? `cluster ${item.cluster}` : "", item.source].filter(Boolean)));
    node.tabIndex = -1;
    if (item.asked) node.append(block("asked", item.asked));
    if (item.reference) node.append(make("p", "why", "Reference"), block("", item.reference));
    const pair = [data.other, data.candidate].filter(Boolean), rest = data.arms.filter((arm) => !pair.includes(arm) && arm in item.answers);
    node.append(make("div", "sides", ...pair.map((arm, at) => side(item, arm, pair[1 - at]))));
    if (rest.length) {
      const details = make("details", "", make("summary", "", pair.length ? `${rest.length} other ${rest.length === 1 ? "arm" : "arms"}: ` : "", rest.map((arm) => `${arm} ${mark(item.answers[arm].v)}`).join(", ")));
      details.addEventListener("toggle", () => {
        if (details.open && details.childElementCount === 1) details.append(make("div", "sides", ...rest.map((arm) => side(item, arm, data.candidate))));
      });
      node.append(details);
    }
    return node;
  }

  function step(by) {
    const cards = [...list.children], at = cards.indexOf(document.activeElement.closest(".one"));
    if (at + by >= cards.length && !more.hidden) draw();
    list.children[Math.max(0, at + by)]?.focus();
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(filter, 60);
  });
  more.addEventListener("click", draw);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
    if (event.key === "j" || event.key === "k") step(event.key === "j" ? 1 : -1);
    else if (event.key === "/") form.elements.text.focus();
    else return;
    event.preventDefault();
  });
  const asked = /^#items\?(.+)$/.exec(location.hash);
  if (asked) {
    for (const [name, value] of new URLSearchParams(asked[1])) if (form.elements[name]) form.elements[name].value = value;
    document.getElementById("items").scrollIntoView();
  }
  document.getElementById("tally").textContent = data.items.length.toLocaleString("en");
  filter();
})();
