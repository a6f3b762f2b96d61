"use strict";
(() => {
  const details = JSON.parse(document.getElementById("data").textContent);
  const box = document.getElementById("detail");
  const SVG = "http://www.w3.org/2000/svg";
  let pinned = null, from = null;

  // --- one change -------------------------------------------------------------------------------------------------
  const make = (tag, text, name) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (name) made.className = name;
    return made;
  };
  const shape = (state) => {
    const drawn = document.createElementNS(SVG, "svg"), use = document.createElementNS(SVG, "use");
    drawn.setAttribute("class", "shape s-" + state);
    drawn.setAttribute("viewBox", "0 0 16 16");
    drawn.setAttribute("aria-hidden", "true");
    use.setAttribute("href", "#shape-" + state);
    drawn.append(use);
    return drawn;
  };
  const list = (pairs, name) => {
    const made = make("dl", undefined, name);
    for (const [key, value] of pairs) made.append(make("dt", key), make("dd", value));
    return made;
  };
  const fill = (ids, at) => {
    const one = details[ids[at]], title = make("h4");
    title.id = "detail-title";
    title.append(shape(one.state), make("span", one.title));
    const undo = make("div", one.undo, "undo");
    if (one.command) undo.append(make("br"), make("code", one.command));
    box.replaceChildren(title, list(one.facts), undo);
    // Last, as it may be long.
    const numbers = make("dl", undefined, "more");
    if (one.evidence.length) numbers.append(make("dt", "evidence"), wrapped(list(one.evidence, "numbers")));
    if (one.later.length) numbers.append(make("dt", "the guard saw"), wrapped(list(one.later, "numbers")));
    if (numbers.children.length) box.append(numbers);
    if (ids.length > 1) box.append(pager(ids, at));
  };
  const wrapped = (inner) => { const made = make("dd"); made.append(inner); return made; };
  const pager = (ids, at) => {
    const bar = make("div", undefined, "pages");
    const turn = (text, label, to) => {
      const made = make("button", text);
      made.type = "button";
      made.setAttribute("aria-label", label);
      made.onclick = () => { pin(from, ids, (to + ids.length) % ids.length); };
      return made;
    };
    bar.append(turn("‹", "the one before", at - 1), make("span", `${at + 1} of ${ids.length} here`),
      turn("›", "the next one", at + 1));
    return bar;
  };
  const place = (near) => {
    box.hidden = false;
    const anchor = near.getBoundingClientRect(), width = box.offsetWidth, height = box.offsetHeight;
    const right = anchor.right + 10 + width < innerWidth;
    const left = right ? anchor.right + 10 : Math.max(12, anchor.left - 10 - width);
    box.style.left = left + "px";
    box.style.top = Math.max(12, Math.min(anchor.top - 20, innerHeight - height - 12)) + "px";
  };
  const light = (ids, on) => {
    for (const id of ids) {
      document.querySelector(`tr[data-id="${id}"]`)?.classList.toggle("on", on);
      for (const mark of marks) if (mark.dataset.ids.split(" ").includes(String(id))) mark.classList.toggle("on", on);
    }
  };
  const shut = () => {
    if (pinned) light(pinned, false);
    pinned = null;
    box.hidden = true;
    box.classList.remove("peek");
  };
  const pin = (near, ids, at) => {
    shut();
    from = near;
    fill(ids, at);
    const close = make("button", "×", "close");
    close.type = "button";
    close.setAttribute("aria-label", "Close");
    close.onclick = () => { shut(); from.focus(); };
    box.append(close);
    place(near);
    pinned = [ids[at]];
    light(pinned, true);
    box.focus({preventScroll: true});
  };
  const marks = [...document.querySelectorAll(".mark")];
  const idsOf = (mark) => mark.dataset.ids.split(" ");
  for (const mark of marks) {
    mark.addEventListener("click", () => pin(mark, idsOf(mark), 0));
    mark.addEventListener("pointerenter", (event) => {
      if (pinned || event.pointerType === "touch") return;
      const ids = idsOf(mark);
      fill(ids, ids.length - 1);
      box.classList.add("peek");
      place(mark);
    });
    mark.addEventListener("pointerleave", () => { if (!pinned) shut(); });
  }
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !box.hidden) { shut(); from?.focus(); }
    const at = marks.indexOf(document.activeElement);
    const to = event.key === "ArrowRight" ? at + 1 : event.key === "ArrowLeft" ? at - 1 : -1;
    if (at >= 0 && marks[to]) { marks[to].focus(); event.preventDefault(); }
  });
  addEventListener("pointerdown", (event) => {
    if (pinned && !box.contains(event.target) && !event.target.closest(".mark, tr[data-id]")) shut();
  });

  // --- the table --------------------------------------------------------------------------------------------------
  const table = document.getElementById("changes");
  if (table) {
    const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
    const filter = document.getElementById("filter"), chips = [...document.querySelectorAll(".chips button")];
    const words = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
    const apply = () => {
      const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      const states = new Set(chips.filter((chip) => chip.getAttribute("aria-pressed") === "true").map((chip) => chip.dataset.state));
      let shown = 0;
      for (const row of rows) {
        row.hidden = !(states.has(row.dataset.state) && wanted.every((word) => words.get(row).includes(word)));
        shown += !row.hidden;
      }
      document.getElementById("shown").textContent = `${shown} of ${rows.length}`;
    };
    filter.addEventListener("input", apply);
    for (const chip of chips) chip.addEventListener("click", () => {
      chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") !== "true"));
      apply();
    });
    heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
      const compare = (a, b) => key(a).localeCompare(key(b), "en", {numeric: true});
      rows.sort((a, b) => down ? compare(b, a) : compare(a, b));
      body.append(...rows);
    }));
    for (const row of rows) row.addEventListener("click", () => pin(row.querySelector(".open"), [row.dataset.id], 0));
    document.getElementById("tools").hidden = false;
    apply();
  }

  // --- what stands where the pointer is -----------------------------------------------------------------------------
  const UNITS = {
    "bytes": [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]],
    "bit/s": [[1e9, "Gbit/s"], [1e6, "Mbit/s"], [1e3, "kbit/s"]],
    "us": [[1e3, "ms"]], "%": [[0.01, "%"]],
  };
  const short = (value) => Number.isInteger(value) ? value.toLocaleString("en") : String(+value.toPrecision(value >= 1000 ? 4 : 3));
  const words = (value, unit) => {
    for (const [size, name] of UNITS[unit] ?? []) if (value >= size || unit === "%") return `${short(value / size)} ${name}`;
    return `${short(value)} ${unit === "bytes" || unit in UNITS ? unit : ""}`.trim();
  };
  // What stands at x: a tunable as it is; of a signal, what its line shows.
  const valueAt = (line, x, plot) => {
    const exact = line.dataset.values;
    line.xy ??= (exact ?? line.getAttribute("points")).split(" ").map((pair) => pair.split(",").map(Number));
    const xy = line.xy;
    if (x < xy[0][0] || (!exact && x > xy[xy.length - 1][0])) return null;
    let first = 0, last = xy.length - 1;
    while (first < last) { const middle = (first + last + 1) >> 1; if (xy[middle][0] <= x) first = middle; else last = middle - 1; }
    if (exact) return xy[first][1];
    const {low, high, log} = plot.dataset, part = 1 - xy[first][1] / 100;
    return log === "1" ? low * (high / low) ** part : +low + (high - low) * part;
  };
  const plots = [...document.querySelectorAll(".plot")];
  const show = (share, mine) => {
    for (const plot of plots) {
      const hair = plot.querySelector(".hair"), read = plot.querySelector(".read");
      hair.style.left = share * 100 + "%";
      hair.style.opacity = .5;
      if (plot.closest(".card") !== mine) { read.style.opacity = 0; continue; }
      const found = [];
      for (const line of plot.querySelectorAll(".curve, .step")) {
        const value = valueAt(line, share * 1000, plot);
        if (value !== null) found.push((line.dataset.name ? line.dataset.name + " " : "") + words(value, plot.dataset.unit));
      }
      read.textContent = found.join(" · ");
      read.style.opacity = found.length ? 1 : 0;
      read.style.left = Math.max(-50, Math.min(share * plot.offsetWidth - read.offsetWidth / 2, plot.offsetWidth - read.offsetWidth)) + "px";
    }
  };
  const hide = () => { for (const part of document.querySelectorAll(".hair, .read")) part.style.opacity = 0; };
  for (const plot of plots) {
    plot.addEventListener("pointermove", (event) => {
      if (event.target.closest(".mark")) { hide(); return; }
      const area = plot.getBoundingClientRect();
      show(Math.min(1, Math.max(0, (event.clientX - area.left) / area.width)), plot.closest(".card"));
    });
    plot.addEventListener("pointerleave", hide);
  }
})();
