"use strict";
// Draws the items from the JSON in this page. Model outputs are hostile text: every one becomes a text node,
// nothing is ever parsed as HTML. Only one page of each list is in the document at a time.
(() => {
  const data = JSON.parse(document.getElementById("items-data").textContent);
  const WORDS = { worse: "got worse", better: "improved", wrong: "both wrong", right: "both right", unscored: "not compared" };
  const SIGNS = { worse: "▼", better: "▲", wrong: "✗", right: "✓", unscored: "–" };

  function make(tag, look, ...children) {
    const node = document.createElement(tag);
    if (look) node.className = look;
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }

  function block(look, text) {
    const node = make("div", look, text);
    node.tabIndex = 0; // long texts scroll inside; the keyboard must reach them
    return node;
  }

  function question(item) {
    const asked = item.asked.map((place) => data.messages[place]);
    for (let i = asked.length - 1; i >= 0; i--) if (asked[i].role === "user") return asked[i].content;
    return asked.length ? asked[asked.length - 1].content : `item ${item.id}`;
  }

  function mark(answer) {
    if (!answer) return make("span", "mark none", "not asked");
    if (answer.value === null) return make("span", "mark none", "not scored");
    if (answer.value >= 1) return make("span", "mark good", "✓ right");
    if (answer.value <= 0) return make("span", "mark bad", "✗ wrong");
    return make("span", "mark part", `${Math.round(100 * answer.value)} %`);
  }

  function answerBox(arm, answer) {
    const box = make("div", arm === data.tuned ? "answer tuned" : "answer", make("h4", "", arm, " ", mark(answer)));
    if (!answer) return box;
    box.append(block("text", answer.text || "(empty answer)"));
    if (answer.answer) box.append(make("p", "why", make("b", "", "Read as "), answer.answer));
    if (answer.explanation) box.append(make("p", "why", answer.explanation));
    const facts = [];
    if (answer.ended === "length") facts.push("cut at the token limit");
    if (answer.ended === "error") facts.push("the model failed");
    if (answer.tokens_out !== undefined) facts.push(`${answer.tokens_out} tokens`);
    if (answer.seconds !== undefined) facts.push(`${answer.seconds.toPrecision(2)} s`);
    if (facts.length) box.append(make("p", "small", facts.join(" · ")));
    return box;
  }

  function lazyDetails(title, fill) {
    const details = make("details", "", make("summary", "", title));
    details.addEventListener("toggle", () => {
      if (details.open && details.childElementCount === 1) details.append(...fill());
    });
    return details;
  }

  function body(item, withQuestion) {
    const parts = [];
    const asked = item.asked.map((place) => data.messages[place]);
    const last = question(item);
    if (withQuestion) parts.push(block("asked", last));
    const rest = asked.filter((message) => !(message.role === "user" && message.content === last));
    if (rest.length) {
      parts.push(lazyDetails(`The whole prompt (${asked.length} messages)`, () =>
        asked.map((message) => make("div", "turn", make("b", "", message.role), block("text", message.content)))));
    }
    if (item.reference) parts.push(make("div", "reference", make("b", "", "Reference"), block("text", item.reference)));
    const pair = [data.other, data.tuned].filter((arm) => arm !== null);
    parts.push(make("div", "answers", ...pair.map((arm) => answerBox(arm, item.answers[arm]))));
    const others = Object.keys(item.answers).filter((arm) => !pair.includes(arm));
    if (others.length) {
      parts.push(lazyDetails(`${others.length} other ${others.length === 1 ? "arm" : "arms"}`, () =>
        [make("div", "answers", ...others.map((arm) => answerBox(arm, item.answers[arm])))]));
    }
    parts.push(make("p", "small", [`item ${item.id}`, item.source, ...item.tags].filter(Boolean).join(" · ")));
    return parts;
  }

  function card(index) {
    return make("article", "item", ...body(data.items[index], true));
  }

  function row(index) {
    const item = data.items[index];
    const text = question(item).replace(/\s+/g, " ").slice(0, 160);
    const status = make("span", `status ${item.status}`, `${SIGNS[item.status]} ${WORDS[item.status]}`);
    const details = lazyDetails("", () => body(item, true));
    details.className = "item-row";
    details.firstChild.append(make("span", "excerpt", text), status);
    return details;
  }

  // One page of a list, with buttons to turn it. `show` replaces what the list is over.
  function pager(place, size, draw) {
    let indices = [], first = 0;
    const content = make("div", "page"), where = make("span", "where"), bar = make("p", "pager");
    function button(text, turn) {
      const node = make("button", "", text);
      node.type = "button";
      node.addEventListener("click", () => { turn(); update(); content.scrollIntoView({ block: "nearest" }); });
      return node;
    }
    const back = button("← Back", () => { first = Math.max(0, first - size); });
    const next = button("More →", () => { first = Math.min(first + size, indices.length - 1); });
    bar.append(back, where, next);
    place.append(content, bar);
    function update() {
      const shown = indices.slice(first, first + size);
      content.replaceChildren(...shown.map(draw));
      where.textContent = `${first + 1}–${first + shown.length} of ${indices.length.toLocaleString("en")}`;
      bar.hidden = indices.length <= size;
      back.disabled = first === 0;
      next.disabled = first + size >= indices.length;
    }
    return (list) => { indices = list; first = 0; update(); };
  }

  for (const name of ["worse", "better"]) {
    const place = document.querySelector(`[data-list=${name}]`);
    if (place) pager(place, name === "worse" ? 5 : 3, card)(data[name]);
  }

  const place = document.querySelector("[data-list=items]");
  if (!place) return;
  const show = pager(place, 25, row), form = document.querySelector(".filters"), found = document.querySelector(".found");
  const haystacks = []; // made at the first search: lower-case text of each item
  function haystack(index) {
    if (haystacks[index] === undefined) {
      const item = data.items[index], texts = [item.id, item.reference, ...item.tags];
      for (const at of item.asked) if (data.messages[at].role !== "system") texts.push(data.messages[at].content);
      for (const arm in item.answers) texts.push(item.answers[arm].text, item.answers[arm].answer || "");
      haystacks[index] = texts.join("\n").toLowerCase();
    }
    return haystacks[index];
  }
  function filter() {
    const text = form.elements.text.value.trim().toLowerCase(), tag = form.elements.tag.value;
    const status = form.elements.status.value;
    const kept = [];
    data.items.forEach((item, index) => {
      if (status !== "all" && item.status !== status) return;
      if (tag && !item.tags.includes(tag)) return;
      if (text && !haystack(index).includes(text)) return;
      kept.push(index);
    });
    found.textContent = `${kept.length.toLocaleString("en")} of ${data.items.length.toLocaleString("en")} items`;
    show(kept);
  }
  for (const node of form.querySelectorAll("[data-count]")) {
    const wanted = node.dataset.count;
    const count = wanted === "all" ? data.items.length : data.items.filter((item) => item.status === wanted).length;
    node.textContent = count.toLocaleString("en");
    const radio = node.closest("label").querySelector("input");
    radio.disabled = count === 0;
  }
  const tags = [...new Set(data.items.flatMap((item) => item.tags))].sort();
  if (tags.length > 1) {
    for (const tag of tags) form.elements.tag.append(new Option(tag, tag));
    form.querySelector(".tags").hidden = false;
  }
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", filter);
  form.addEventListener("change", filter);
  form.reset();
  filter();
})();
