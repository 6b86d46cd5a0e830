// Keys, time and focus. Pages work without it, only slower: every key presses a button that is there.
"use strict";

(() => {
  const typing = (element) => element.matches("textarea, select, input:not([type=radio]):not([type=checkbox])");
  let seen = 0, since = 0; // milliseconds that the case has been looked at

  const begin = () => { seen = 0; since = document.hidden ? 0 : performance.now(); };
  const looked = () => Math.round(seen + (since ? performance.now() - since : 0));
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { seen = looked(); since = 0; } else { since = performance.now(); }
  });

  // one name for a key, whatever the keyboard: letters small, digits from either block
  const keyOf = (event) => event.key.length === 1 ? event.key.toLowerCase() : event.key;

  const nextStep = (from) => {
    const groups = [...document.querySelectorAll(".steps")];
    const open = groups.filter((group) => !group.querySelector("input:checked"));
    const place = from ? groups.indexOf(from) : -1;
    const next = from ? groups[place + 1] : open[0] || groups[0];
    if (next) { (next.querySelector("input:checked") || next.querySelector("input")).focus({ focusVisible: true }); }
    else if (document.activeElement) { document.activeElement.blur(); }
  };

  const open = (summary) => {
    const details = summary.parentElement;
    if (details.matches(".rubric")) { details.open = true; nextStep(document.activeElement.closest(".steps")); return; }
    details.open = !details.open;
    const field = details.open && details.querySelector("textarea, input[type=checkbox]");
    if (field) { field.focus({ focusVisible: true }); } else { summary.blur(); }
  };

  const press = (target) => {
    if (target.matches("summary")) { open(target); }
    else if (target.matches("input[type=radio]")) { target.checked = true; target.focus({ focusVisible: true }); }
    else if (target.dataset.key === "?") { document.getElementById("keys").showModal(); }
    else { target.classList.add("hit"); target.click(); }
  };

  document.addEventListener("keydown", (event) => {
    const active = document.activeElement || document.body;
    if (event.isComposing || document.querySelector("dialog[open]")) { return; }
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      const form = active.closest("form[data-send=ctrl]");
      if (form) { event.preventDefault(); form.requestSubmit(); } else if (typing(active)) { active.blur(); }
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey) { return; }
    if (event.key === "Escape") { active.blur(); return; }
    if (typing(active)) { return; }
    const key = keyOf(event);
    const steps = active.closest(".steps");
    if (steps && /^[1-9]$/.test(key)) { // within a criterion a digit is its step, and the next criterion follows
      const step = steps.querySelectorAll("input")[Number(key) - 1];
      event.preventDefault();
      if (step) { step.checked = true; step.dispatchEvent(new Event("change", { bubbles: true })); nextStep(steps); }
      return;
    }
    const target = [...document.querySelectorAll("[data-key]")].find((one) => one.dataset.key === key && !one.disabled && one.getClientRects().length);
    if (target) { event.preventDefault(); if (!event.repeat) { press(target); } }
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-key='?']");
    if (button) { document.getElementById("keys").showModal(); }
  });

  // a second D folds what the first has shown
  document.addEventListener("htmx:beforeRequest", (event) => {
    const shown = document.getElementById("difference");
    if (event.target.matches("[data-key=d]") && shown && !shown.hidden) {
      event.preventDefault(); shown.hidden = true; event.target.setAttribute("aria-expanded", "false"); event.target.classList.remove("hit");
    }
  });

  document.addEventListener("htmx:configRequest", (event) => {
    event.detail.headers["X-Form"] = document.body.dataset.form || "";
    if (event.target.id === "ballot") { event.detail.parameters.set("ms", looked()); }
  });

  // answers scroll together, each by its own share
  let led = null;
  document.addEventListener("scroll", (event) => {
    const moved = event.target;
    if (!(moved instanceof Element) || !moved.matches(".pair .scroll") || (led && led !== moved)) { return; }
    led = moved;
    for (const other of document.querySelectorAll(".pair .scroll")) {
      if (other !== moved) { other.scrollTop = moved.scrollTop / Math.max(1, moved.scrollHeight - moved.clientHeight) * (other.scrollHeight - other.clientHeight); }
    }
    requestAnimationFrame(() => requestAnimationFrame(() => { led = null; }));
  }, true);

  const arrived = () => {
    const desk = document.getElementById("desk");
    if (!desk) { return; }
    begin();
    const first = desk.querySelector("[autofocus], .first");
    if (first) { first.focus({ preventScroll: true }); }
    window.scrollTo(0, 0);
  };
  document.addEventListener("htmx:afterSwap", (event) => {
    const target = event.detail.elt || event.target;
    if (target.id === "difference") {
      target.hidden = false;
      for (const button of document.querySelectorAll("[data-key=d]")) { button.setAttribute("aria-expanded", "true"); button.classList.remove("hit"); }
    } else if (target.id === "desk" || document.getElementById("desk") === event.target) {
      document.getElementById("said").textContent = document.getElementById("desk").dataset.said;
      arrived();
    }
  });
  document.addEventListener("htmx:sendError", () => {
    document.getElementById("said").textContent = "The server cannot be reached. What was confirmed is kept; try again when it is back.";
    for (const button of document.querySelectorAll(".hit")) { button.classList.remove("hit"); }
  });
  document.addEventListener("htmx:responseError", () => { for (const button of document.querySelectorAll(".hit")) { button.classList.remove("hit"); } });

  const link = document.getElementById("link");
  if (link) { link.textContent = location.origin + link.dataset.path; }
  arrived();
})();
