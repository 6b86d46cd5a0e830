"use strict";
// Draws rows from the JSON in this page. Data is hostile text: every piece of it becomes a text node, nothing is ever
// parsed as HTML. A row is drawn when it is opened.
(() => {
  const rows = JSON.parse(document.getElementById("rows-data").textContent);
  const named = JSON.parse(document.getElementById("words-data").textContent);
  const kinds = named.map((pair) => pair[0]), words = named.map((pair) => pair[1]);
  const inspector = document.getElementById("inspector");
  const drawn = document.getElementById("drawn");
  const pieces = new WeakMap();

  function make(tag, look, ...children) {
    const node = document.createElement(tag);
    if (look) node.className = look;
    node.append(...children);
    return node;
  }

  function token(piece, branch) {
    const [text, ids, kind, flags] = piece;
    const node = make("span", `t k-${kinds[kind]}${flags & 1 ? " trained" : ""}${flags & 2 ? " control" : ""}`, text);
    pieces.set(node, { ids, kind, flags, branch });
    return node;
  }

  function list(numbers) {
    if (numbers.length < 2) return `row ${numbers[0]}`;
    const whole = numbers[numbers.length - 1] - numbers[0] === numbers.length - 1;
    return whole && numbers.length > 2 ? `rows ${numbers[0]} to ${numbers[numbers.length - 1]}` : `rows ${numbers.join(", ")}`;
  }

  function say(node) {
    const { ids, kind, flags, branch } = pieces.get(node);
    const number = ids.length > 1 ? `tokens ${ids.join(" ")}` : `token ${ids[0]}`;
    const text = `${number} · ${words[kind]} · ${flags & 1 ? "trained" : "read"}${flags & 2 ? " · control token" : ""} · in ${list(branch.rows)}`;
    inspector.replaceChildren(make("code", "", node.textContent.slice(0, 40)), ` ${text}`);
    inspector.hidden = false;
    node.title = text;
  }

  let current = null;
  function point(node) {
    if (current) current.classList.remove("current");
    current = node;
    if (!node) { inspector.hidden = true; return; }
    node.classList.add("current");
    say(node);
  }

  function branchBox(branch, all) {
    const count = `${branch.tokens.toLocaleString("en")} token${branch.tokens === 1 ? "" : "s"}`;
    const text = make("p", "tokens", ...branch.pieces.map((piece) => token(piece, branch)));
    if (branch.cut) text.append(make("span", "small", ` … ${branch.cut.toLocaleString("en")} more tokens`));
    const shared = branch.rows.length > 1 ? `${list(branch.rows)} share ${count}` : `${list(branch.rows)}: ${count}`;
    const box = make("div", "branch", ...(all === 1 ? [] : [make("p", "small", shared)]), text);
    return box;
  }

  function drawTree(row) {
    const children = row.branches.map(() => []);
    const roots = [];
    row.branches.forEach((branch, place) => (branch.parent < 0 ? roots : children[branch.parent]).push(place));
    const inOrder = (places) => {
      const parts = [];
      for (const place of places) {
        const item = make("li", "", branchBox(row.branches[place], row.branches.length));
        let next = children[place];
        while (next.length === 1) { // a path that only goes on is not indented
          item.append(branchBox(row.branches[next[0]], row.branches.length));
          next = children[next[0]];
        }
        if (next.length) item.append(make("ul", "fork", ...inOrder(next)));
        parts.push(item);
      }
      return parts;
    };
    const box = make("div", "tree", make("ul", roots.length > 1 ? "fork" : "", ...inOrder(roots)));
    box.tabIndex = 0;
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", `Tokens of ${row.where}; arrow keys move from token to token`);
    box.addEventListener("mouseover", (event) => { if (pieces.has(event.target)) point(event.target); });
    box.addEventListener("mouseleave", () => point(null));
    box.addEventListener("blur", () => point(null));
    box.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const nodes = [...box.querySelectorAll(".t")];
      const place = nodes.indexOf(current);
      const to = nodes[Math.min(nodes.length - 1, Math.max(0, place < 0 ? 0 : place + step))];
      point(to);
      to.scrollIntoView({ block: "nearest" });
    });
    return box;
  }

  function rowBox(row, place) {
    const tokens = row.branches.reduce((sum, branch) => sum + branch.tokens, 0);
    const count = row.branches.length ? new Set(row.branches.flatMap((branch) => branch.rows)).size : 0;
    const facts = count ? `${count} row${count === 1 ? "" : "s"}, ${tokens.toLocaleString("en")} distinct tokens` : "cannot be trained";
    const tags = row.kinds.map((kind) => make("span", "tag", kind.replace(/-/g, " ")));
    const details = make("details", "row", make("summary", "", make("span", "place", row.where), make("span", "small", facts), ...tags));
    details.dataset.kinds = row.kinds.join(" ");
    const fill = () => {
      if (!details.open || details.childElementCount > 1) return;
      if (row.problem) details.append(make("p", "missing", row.problem));
      if (row.branches.length) details.append(drawTree(row));
    };
    details.addEventListener("toggle", fill);
    if (place === 0) { details.open = true; fill(); }
    return details;
  }

  if (drawn) drawn.append(...rows.map(rowBox));
  const none = make("p", "missing", "None of the rows drawn here has that. Show one with --row, or ask for more with --show.");
  none.hidden = true;
  if (drawn) drawn.append(none);

  const filter = document.getElementById("filter");
  if (filter) {
    filter.addEventListener("change", (event) => {
      const kind = event.target.value;
      for (const part of document.querySelectorAll(".kind")) part.hidden = Boolean(kind) && part.dataset.kind !== kind;
      let left = 0;
      for (const row of document.querySelectorAll("details.row")) {
        row.hidden = Boolean(kind) && !row.dataset.kinds.split(" ").includes(kind);
        left += row.hidden ? 0 : 1;
      }
      none.hidden = left > 0;
    });
  }
})();
