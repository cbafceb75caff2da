"use strict";
// Nothing here is needed to read the page. Texts of the store are set as text alone, never as markup.
(() => {
  const root = document.documentElement;
  const stored = (value) => {
    try {
      if (value) localStorage.setItem("smog-theme", value);
      return localStorage.getItem("smog-theme");
    } catch {
      return null; // a browser may refuse a file to store anything
    }
  };
  if (["light", "dark"].includes(stored())) root.dataset.theme = stored();

  const make = (tag, properties, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const own = (cell) => [...cell.childNodes].filter((one) => one.nodeName !== "SUP");
  const text = (cell) => own(cell).map((one) => one.textContent).join("");
  const shown = (value) => (typeof value === "string" ? value : value === undefined ? "" : JSON.stringify(value));
  const seconds = (value) => (typeof value === "number" ? `${value.toFixed(1)} s` : "unknown");
  const moment = (value) =>
    typeof value === "number" ? new Date(value * 1000).toISOString().replace("T", " ").replace(".000Z", " UTC") : value;

  let data = null; // read when the first number is pressed
  const known = () => (data ??= JSON.parse(document.getElementById("data").textContent));

  function addTheme() {
    const dark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
    const button = make("button", { type: "button", className: "plain theme" });
    const name = () => (button.textContent = dark() ? "Light" : "Dark");
    button.addEventListener("click", () => {
      root.dataset.theme = dark() ? "light" : "dark";
      stored(root.dataset.theme);
      name();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
    name();
    button.setAttribute("aria-description", "changes the colours of the page");
    document.querySelector("header").append(button);
  }

  // Sorting: within each part of a table, a difference row with the row above it.
  const number = (cell) => {
    const content = (cell.dataset.v ?? text(cell)).replace("\u2212", "-").trim();
    return cell.dataset.v || /^[-+]?\.?\d/.test(content) ? parseFloat(content) : NaN;
  };
  function compare(one, other) {
    const [a, b] = [number(one), number(other)];
    if (!Number.isNaN(a) && !Number.isNaN(b) && a !== b) return a - b;
    return text(one).localeCompare(text(other), "en", { numeric: true });
  }
  const empty = (cell) => !text(cell).trim() || cell.classList.contains("missing");
  function units(body) {
    const found = [];
    for (const row of [...body.rows].filter((one) => !one.classList.contains("part"))) {
      if (row.classList.contains("delta") && found.length) found.at(-1).push(row);
      else found.push([row]);
    }
    return found;
  }
  function sort(table, place, direction, originals) {
    for (const [body, rows] of originals) {
      const sorted = direction === 0 ? rows : rows.toSorted(([one], [other]) => {
        const [a, b] = [one.cells[place], other.cells[place]];
        return empty(a) - empty(b) || (empty(a) ? 0 : direction * compare(a, b));
      });
      body.append(...sorted.flat());
    }
  }
  function addSorting(table) {
    const originals = [...table.tBodies].map((body) => [body, units(body)]);
    [...table.tHead.rows[0].cells].forEach((head, place) => {
      const button = make("button", { type: "button", className: "sort" }, ...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const next = { ascending: "descending", descending: "" }[head.getAttribute("aria-sort")] ?? "ascending";
        for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
        if (next) head.setAttribute("aria-sort", next);
        sort(table, place, { ascending: 1, descending: -1 }[next] ?? 0, originals);
      });
    });
  }

  // What lies behind a number.
  const heads = (cell) => cell.closest("table").tHead.rows[0].cells;
  const runsOf = (cell) => {
    const measured = heads(cell)[cell.cellIndex].dataset.task && text(cell) && !cell.classList.contains("missing");
    return (cell.dataset.runs ?? (measured ? cell.parentElement.dataset.runs : "") ?? "").split(" ").filter(Boolean);
  };
  function addOpening(table) {
    for (const row of table.querySelectorAll("tbody tr[data-runs]")) {
      for (const cell of [...row.cells].filter((one) => runsOf(one).length)) {
        const button = make("button", { type: "button", className: "open" });
        button.setAttribute("aria-haspopup", "dialog");
        button.append(...own(cell));
        cell.prepend(button);
      }
    }
  }
  function copying(command, what) {
    const button = make("button", { type: "button", className: "plain" }, "Copy", make("span", { className: "unseen" }, ` ${what}`));
    const status = make("span", { className: "soft", role: "status" });
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(command);
        status.textContent = " copied";
      } catch {
        status.textContent = " the browser does not allow it";
      }
      setTimeout(() => (status.textContent = ""), 2500);
    });
    return make("p", { className: "copy" }, button, status);
  }
  function commandOf(command, what, facts) {
    const shown = command
      ? make("div", { className: "told" }, make("pre", {}, make("code", {}, command)), copying(command, `the command of ${what}`))
      : make("p", {}, `No command of this version makes ${what} again.`);
    return [shown, make("p", { className: "soft" }, facts.filter(Boolean).join(" \u00b7 "))];
  }
  const facts = (took, device, commit, when) => [`${seconds(took)} on ${device || "an unknown device"}`, `commit ${commit || "unknown"}`, moment(when)];

  function resultOf(run, task, metric) {
    const { protocols, metrics, runs } = known();
    const found = runs[run]?.[7].find((one) => protocols[one[0]][0] === task);
    for (let place = 6; found && place < found.length; place += 2) {
      if (metrics[found[place]] === metric) return [found, found[place + 1]];
    }
    return [found, undefined];
  }
  function runPart(run, task, metric) {
    const { words, runs } = known();
    const part = make("div", { className: "run" });
    const [, seed, command, took, device, commit, finished] = runs[run] ?? [];
    const [result, value] = resultOf(run, task, metric);
    const title = seed === null || seed === undefined ? "Without a seed" : `Seed ${seed}`;
    part.append(make("h3", {}, title + (value === undefined ? "" : `: ${shown(value)}`)));
    part.append(make("p", {}, "Run ", make("code", {}, run)));
    if (seed !== null && seed !== undefined) {
      part.append(...commandOf(words[command].replace("\u0001", seed), `the run of seed ${seed}`, facts(took, words[device], words[commit], finished)));
    }
    if (result) {
      part.append(...commandOf(words[result[1]].replace("\u0001", run), `the result of ${title.toLowerCase()}`,
        facts(result[2], words[result[3]], words[result[4]], result[5])));
    }
    return part;
  }
  function configOf(run) {
    const { base, groups, runs } = known();
    const group = groups[runs[run]?.[0]];
    if (!group) return null;
    const config = { ...base, ...group[0] };
    for (const name of group[1]) delete config[name];
    return config;
  }
  function configPart(run, baseline) {
    const config = configOf(run);
    if (!config) return [];
    const other = baseline ? configOf(baseline) : null;
    const names = Object.keys({ ...config, ...(other ?? {}) });
    const differs = (name) => other && shown(config[name]) !== shown(other[name]);
    const ordered = [...names.filter(differs), ...names.filter((name) => !differs(name))];
    const rows = ordered.map((name) => {
      const note = differs(name) ? make("span", { className: "soft" }, ` (baseline: ${shown(other[name]) || "none"})`) : "";
      return make("tr", { className: differs(name) ? "differs" : "" },
        make("th", { scope: "row" }, make("code", {}, name)), make("td", {}, shown(config[name]), note));
    });
    return [make("h3", {}, "Configuration"), listed(rows, other && ordered.some(differs) ? "First and marked: what differs from the baseline of the table." : "")];
  }
  function protocolPart(task) {
    const settings = Object.entries(known().protocols.find(([name]) => name === task)?.[1] ?? {});
    if (!settings.length) return [];
    const rows = settings.map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, make("code", {}, name)), make("td", {}, shown(value))));
    return [make("h3", {}, `Settings of ${task}`), listed(rows, "")];
  }
  function listed(rows, caption) {
    const head = make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "name"), make("th", { scope: "col" }, "value")));
    const table = make("table", { className: "list" }, head, make("tbody", {}, ...rows));
    if (caption) table.prepend(make("caption", {}, make("span", {}, caption)));
    return table;
  }
  const MARKS = { best: "among the best", second: "second", incomplete: "incomplete" };
  function bodyOf(cell) {
    const [runs, { task, metric }] = [runsOf(cell), heads(cell)[cell.cellIndex].dataset];
    const values = runs.filter((run) => resultOf(run, task, metric)[1] !== undefined);
    const words = [`in full ${cell.dataset.v ?? text(cell)}, from ${runs.length} run${runs.length > 1 ? "s" : ""}`];
    words.push(...Object.keys(MARKS).filter((mark) => cell.classList.contains(mark)).map((mark) => MARKS[mark]));
    const notes = [...cell.querySelectorAll("sup a")].map((one) => document.getElementById(one.hash.slice(1))?.textContent);
    return make("div", { className: "body" },
      make("p", { className: "value" }, text(cell)), make("p", { className: "soft" }, words.join("; ")),
      ...notes.map((note) => make("p", { className: "soft" }, note ?? "")),
      ...(values.length ? values : runs).map((run) => runPart(run, task, metric)),
      ...configPart(runs[0], cell.closest("table").dataset.baseline), ...protocolPart(task));
  }
  function addDialog() {
    const title = make("h2", { id: "dialog-title" });
    const close = make("button", { type: "button", className: "plain" }, "Close");
    const top = make("div", { className: "top" }, title, close);
    const dialog = make("dialog", {}, top);
    dialog.setAttribute("aria-labelledby", title.id);
    close.addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // beside it
    document.body.append(dialog);
    document.addEventListener("click", (event) => {
      const cell = event.target.closest?.(".open")?.parentElement;
      if (!cell) return;
      const labels = [...cell.parentElement.cells].filter((one) => one.matches("th, .text")).map(text).filter(Boolean);
      title.textContent = `${text(heads(cell)[cell.cellIndex])}: ${labels.join(", ")}`;
      dialog.replaceChildren(top, bodyOf(cell));
      dialog.showModal();
      dialog.scrollTop = 0;
    });
  }

  document.addEventListener("DOMContentLoaded", () => {
    addTheme();
    addDialog();
    for (const table of document.querySelectorAll("table.grid")) {
      addOpening(table);
      addSorting(table);
    }
    for (const table of document.querySelectorAll("main table:not(.grid)")) addSorting(table);
    for (const command of document.querySelectorAll("details > .command")) command.after(copying(command.textContent, "the command of the table"));
    for (const hint of document.querySelectorAll(".scripted")) hint.hidden = false;
  });
})();
