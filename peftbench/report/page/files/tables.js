// The leaderboard and the heat map: tables whose column heads sort.

// Columns are {key, head, group, value(row), cell(row), cut}; a missing value sorts last.
function drawTable(table, columns, rows, sort, choose) {
  const chosen = columns.find((column) => column.key === sort.key) ?? columns[1];
  const order = [...rows].sort((a, b) => compare(chosen.value(a), chosen.value(b), sort.down));
  const heads = columns.map((column) =>
    element(
      "th",
      {
        scope: "col",
        class: column.cut ? "cut" : column.words ? "words" : null,
        "aria-sort": column === chosen ? (sort.down ? "descending" : "ascending") : null,
      },
      column.group ? element("span", { class: "group" }, column.group) : null,
      element("button", { type: "button", "data-key": column.key, title: column.title, onclick: () => choose(column) }, column.head),
    ),
  );
  const focused = document.activeElement?.dataset?.key;
  const inside = table.contains(document.activeElement);
  table.replaceChildren(
    element("thead", {}, element("tr", {}, ...heads)),
    element("tbody", {}, ...order.map((row) => element("tr", { "data-label": row.label }, ...columns.map((c) => c.cell(row))))),
  );
  if (inside && focused) [...table.querySelectorAll("button")].find((b) => b.dataset.key === focused)?.focus();
  return order;
}

function compare(a, b, down) {
  const missing = (value) => value === null || value === undefined;
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  const sign = typeof a === "string" ? a.localeCompare(b) : a - b;
  return down ? -sign : sign;
}

const nameColumn = {
  key: "name",
  head: "method",
  value: (row) => row.label,
  cell: (row) =>
    element(
      "th",
      { scope: "row" },
      element("a", { class: "named", href: `#method-${row.method}`, onclick: () => choosePart(row.method) }, glyph(row.method), row.label),
    ),
};

function choosePart(method) {
  for (const part of document.querySelectorAll(".method")) {
    part.classList.toggle("chosen", part.dataset.method === method);
    if (part.dataset.method === method) part.hidden = false;
  }
}

const SHOWN = { missing: "–", unsupported: "n/a", failed: "failed", interrupted: "interrupted", mixed: "mixed", incomplete: "–" };

function score(row, name) {
  const cell = row.cells[name];
  return cell?.state === "ok" ? cell.mean : null;
}

// The interval of a cell, and how often it holds in simulations.
function intervalText(cell) {
  const held = cell.holds ? ` (${cell.holds})` : "";
  const over = cell.over ? ` over ${cell.over}` : "";
  return `95 % interval${over} ${percent(cell.low)} to ${percent(cell.high)}${held}`;
}

function scoreTitle(cell) {
  const parts = cell.state === "ok" ? [`${percent(cell.mean)} %`] : [cell.state];
  if (cell.low !== undefined && cell.low !== null) parts.push(intervalText(cell));
  if (cell.sd !== undefined && cell.sd !== null) parts.push(`sample sd ${percent(cell.sd)}`);
  if (cell.n) parts.push(`n = ${cell.n}`);
  if (cell.note) parts.push(cell.note);
  return parts.join("\n");
}

// Without its spread, which the title has in any case, a cell takes half the width.
function meanCell(row, name) {
  const cell = row.cells[name] ?? { state: "missing" };
  const ok = cell.state === "ok";
  return element("td", { class: ok ? null : "none", title: scoreTitle(cell) }, ok ? percent(cell.mean) : SHOWN[cell.state]);
}

function scoreCell(row, name, ...more) {
  const cell = row.cells[name] ?? { state: "missing" };
  if (cell.state !== "ok") return meanCell(row, name);
  const spread = cell.sd === null || cell.sd === undefined ? null : element("span", { class: "sd" }, ` ± ${percent(cell.sd)}`);
  return element("td", { title: scoreTitle(cell) }, percent(cell.mean), spread, ...more);
}

// The ends of what is known about a mean: its interval, else one standard deviation.
function ends(cell) {
  if (cell.low !== undefined && cell.low !== null) return [cell.low, cell.high];
  const sd = cell.sd ?? 0;
  return [cell.mean - sd, cell.mean + sd];
}

function intervalPlot(cell, method, low, high) {
  const width = 92;
  const at = (value) => 6 + ((value - low) / (high - low || 1)) * (width - 12);
  const [from, to] = ends(cell);
  const dot = shape("g", { transform: `translate(${at(cell.mean)} 8)` }, mark(method, 4));
  return shape(
    "svg",
    { class: "interval", width, height: 16, viewBox: `0 0 ${width} 16`, "aria-hidden": "true" },
    shape("line", { class: "track", x1: 0, x2: width, y1: 8, y2: 8 }),
    shape("line", { x1: at(from), x2: at(to), y1: 8, y2: 8 }),
    dot,
  );
}

const BEST = "not distinguishable from the best at 5 % (exchanging runs between methods and Welch's t-test, Holm over all pairs)";

const BEST_OWN = "not distinguishable from the best on new images at 5 % (test of single images, Holm over all pairs)";
const bestText = (panel) => (panel.own ? BEST_OWN : BEST);

const wholeAverage = (panel) => panel.averages.find((a) => a.kind === "mean of tasks")?.name ?? panel.tasks[0].name;

// Labels not distinguishable from the best; the tests are about the mean of all tasks.
function equals(state, panel) {
  return state.average === wholeAverage(panel) ? panel.best[state.metric] : [];
}

// Scores on val, by which one's own data sets are ranked: test is not for choosing.
const valColumn = (state) => ({
  key: "val",
  head: "val",
  title: "on val, of runs and trials that trained on train alone",
  value: (row) => row.cells[state.average]?.val ?? null,
  cell: (row) => {
    const val = row.cells[state.average]?.val;
    return val === undefined ? element("td", { class: "none" }, "–") : element("td", {}, percent(val));
  },
});

function boardColumns(state, panel, rows) {
  const cells = rows.map((row) => row.cells[state.average]).filter((cell) => cell?.state === "ok");
  const low = Math.min(...cells.map((cell) => ends(cell)[0]));
  const high = Math.max(...cells.map((cell) => ends(cell)[1]));
  const price = (row, name) => panel.costs[row.label]?.[name]?.[0] ?? null;
  const columns = [
    nameColumn,
    {
      key: "average",
      head: state.average,
      value: (row) => score(row, state.average),
      cell: (row) => {
        const cell = row.cells[state.average];
        if (cell?.state !== "ok") return scoreCell(row, state.average);
        const best = equals(state, panel).includes(row.label);
        const star = element("span", { class: "best", title: best ? bestText(panel) : null }, best ? "●" : "");
        return scoreCell(row, state.average, star, intervalPlot(cell, row.method, low, high));
      },
    },
    ...(rows.some((row) => row.cells[state.average]?.val !== undefined) ? [valColumn(state)] : []),
    {
      key: "parameters",
      head: state.head ? "tuned parameters with head" : "tuned parameters",
      up: true,
      value: (row) => (state.head ? row.with_head : row.parameters),
      cell: (row) => {
        const count = state.head ? row.with_head : row.parameters;
        return count === null
          ? element("td", { class: "none" }, "–")
          : element("td", { title: count.toLocaleString("en") }, magnitude(count));
      },
    },
  ];
  for (const cost of DATA.costs.filter((c) => c.measured || c.name === "stored")) {
    if (!rows.some((row) => price(row, cost.name) !== null)) continue;
    columns.push({
      key: cost.name,
      head: cost.short,
      title: cost.heading,
      up: true,
      value: (row) => price(row, cost.name),
      cell: (row) => {
        const value = price(row, cost.name);
        return value === null ? element("td", { class: "none" }, "–") : element("td", {}, priceText(cost, value));
      },
    });
  }
  for (const { name } of panel.averages.filter((a) => a.name !== state.average)) {
    columns.push({ key: name, head: name, value: (row) => score(row, name), cell: (row) => meanCell(row, name) });
  }
  columns.push({
    key: "n",
    head: panel.own ? "runs" : "seeds",
    value: (row) => row.cells[state.average]?.n ?? null,
    cell: (row) => element("td", {}, String(row.cells[state.average]?.n ?? "–")),
  });
  return columns;
}

function heatColumns(panel, rows) {
  const columns = [nameColumn];
  const names = [...panel.averages.filter((a) => a.kind !== "group mean").map((a) => ({ name: a.name, short: a.name })), ...panel.tasks];
  for (const task of names) {
    const values = rows.map((row) => score(row, task.name)).filter((value) => value !== null);
    const low = Math.min(...values);
    const high = Math.max(...values);
    columns.push({
      key: task.name,
      head: task.short,
      title: task.name,
      group: task.group,
      cut: panel.averages.length > 0 && task.name === panel.tasks[0].name,
      value: (row) => score(row, task.name),
      cell: (row) => {
        const cell = row.cells[task.name] ?? { state: "missing" };
        const cut = panel.averages.length > 0 && task.name === panel.tasks[0].name ? " cut" : "";
        if (cell.state !== "ok") return element("td", { class: `none${cut}`, title: scoreTitle(cell) }, SHOWN[cell.state]);
        const node = element("td", { class: `cell${cut}`, title: scoreTitle(cell) }, percent(cell.mean));
        const share = high > low ? (cell.mean - low) / (high - low) : 1;
        node.style.setProperty("--share", `${(4 + 50 * share).toFixed(1)}%`);
        return node;
      },
    });
  }
  return columns;
}
