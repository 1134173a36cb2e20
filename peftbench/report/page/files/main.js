// What is chosen, and drawing again when that changes.

const state = {
  backbone: null,
  suite: null,
  metric: null, // that of the panel, until one is chosen
  chosen: false,
  average: null,
  head: false,
  search: "",
  price: "parameters",
  device: null,
  task: "",
  quantity: Object.keys(DATA.quantities)[0],
  hidden: new Set(),
  board: { key: "average", down: true },
  sorted: false, // whether a head of the board was pressed
  heat: { key: null, down: true },
};

const panelOf = () => DATA.panels.find((p) => p.backbone === state.backbone && p.suite === state.suite);
const unique = (values) => [...new Set(values)];

// Choices of a menu; the menu hides where there is nothing to choose.
function offer(id, values, chosen) {
  const menu = byId(id);
  menu.replaceChildren(...values.map(([value, text]) => element("option", { value, selected: value === chosen }, text)));
  menu.value = chosen;
  menu.closest("label").hidden = values.length < 2;
}

function settle() {
  const backbones = unique(DATA.panels.map((p) => p.backbone));
  if (!backbones.includes(state.backbone)) state.backbone = DATA.first.backbone;
  const suites = unique(DATA.panels.filter((p) => p.backbone === state.backbone).map((p) => p.suite));
  if (!suites.includes(state.suite)) state.suite = suites.includes(DATA.first.suite) ? DATA.first.suite : suites[0];
  const panel = panelOf();
  if (!state.chosen || !(state.metric in panel.scores)) state.metric = panel.metric;
  const averages = panel.averages.length ? panel.averages.map((a) => a.name) : panel.tasks.map((t) => t.name);
  if (!averages.includes(state.average)) state.average = averages[0];
  const prices = DATA.costs.filter((c) => Object.values(panel.costs).some((price) => c.name in price));
  if (prices.length && !prices.some((c) => c.name === state.price)) state.price = prices[0].name;
  if (!state.sorted) state.board = { key: panel.by_val[state.metric] ? "val" : "average", down: true };
  const tasks = Object.keys(panel.curves).sort();
  if (!tasks.includes(state.task)) state.task = tasks[0] ?? "";
  const devices = unique(Object.values(panel.costs).map((price) => price.device)).filter(Boolean);
  const count = (device) => Object.values(panel.costs).filter((price) => price.device === device).length;
  state.device = devices.sort((a, b) => count(b) - count(a))[0] ?? null;
  offer("backbone", backbones.map((b) => [b, b]), state.backbone);
  offer("suite", suites.map((s) => [s, s || "no suite"]), state.suite);
  offer("metric", Object.entries(DATA.metrics).filter(([name]) => name in panel.scores), state.metric);
  offer("average", averages.map((a) => [a, a]), state.average);
  offer("price", prices.map((c) => [c.name, c.heading]), state.price);
  offer("task", tasks.map((t) => [t, t || "mean of tasks"]), state.task);
  offer("quantity", Object.entries(DATA.quantities), state.quantity);
  return panel;
}

function draw() {
  tip.hide();
  const panel = settle();
  const wanted = state.search.toLowerCase().split(/[\s,]+/).filter(Boolean);
  const fits = (label) => !wanted.length || wanted.some((word) => label.toLowerCase().includes(word));
  const rows = (panel.scores[state.metric] ?? []).filter((row) => fits(row.label));

  const order = drawTable(byId("board"), boardColumns(state, panel, rows), rows, state.board, sortBy("board"));
  byId("finding").textContent = finding(panel, rows);
  const devices = panel.devices.length ? ` Costs were measured on ${panel.devices.join(", ")}.` : "";
  byId("board-remark").textContent =
    `${order.length} of ${(panel.scores[state.metric] ?? []).length} rows; test ${DATA.metrics[state.metric]} in %, mean ± sample standard deviation over ${panel.own ? "runs" : "seeds"}. ${panel.ranking[state.metric] ?? ""} ${DATA.interval} ${equals(state, panel).length ? `●: ${bestText(panel)}.` : ""}${devices}`;

  const heat = heatColumns(panel, rows);
  if (!heat.some((c) => c.key === state.heat.key)) state.heat = { key: heat[1]?.key, down: true };
  drawTable(byId("heat"), heat, rows, state.heat, sortBy("heat"));

  const { absent, cost } = drawScatter(byId("scatter"), state, panel, rows);
  const device = cost.measured && state.device ? ` Measured on ${state.device}.` : "";
  const missing = absent ? ` ${absent} ${absent === 1 ? "row is" : "rows are"} not shown: incomplete, undefined here, or measured elsewhere.` : "";
  byId("scatter-remark").textContent =
    `Dashed: the best at its cost or less. ${DATA.interval}${cost.measured ? " Across, the range over seeds." : ""}${device}${missing}`;

  drawLearning(panel, rows);
  for (const part of document.querySelectorAll(".method")) part.hidden = !fits(part.dataset.method);
}

function drawLearning(panel, rows) {
  const labels = new Set(rows.map((row) => row.label));
  drawCurves(byId("curves"), state, panel, labels);
  drawChips(byId("chips"), state, panel, labels, () => drawLearning(panel, rows));
}

// What the runs tell of who is ahead. The tests are of all rows, on the mean of all tasks; of other
// choices only the highest mean is named.
function finding(panel, rows) {
  const ranked = rows.filter((row) => score(row, state.average) !== null).sort((a, b) => score(b, state.average) - score(a, state.average));
  if (!ranked.length) return "No row is complete yet for this choice.";
  const top = ranked[0];
  const cell = top.cells[state.average];
  const also = equals(state, panel).filter((label) => label !== top.label && ranked.some((r) => r.label === label));
  const cheap = ranked.filter((row) => also.includes(row.label) && row.parameters !== null).sort((a, b) => a.parameters - b.parameters)[0];
  const all = (panel.scores[state.metric] ?? []).length === rows.length;
  let text = `${top.label} has the highest mean of the rows shown, ${percent(cell.mean)} % (${state.average}, ${cell.n} ${panel.own ? "run" : "seed"}${cell.n === 1 ? "" : "s"}).`;
  if (all && wholeAverage(panel) === state.average && panel.verdict[state.metric]) text = panel.verdict[state.metric];
  else text += " Whether that is more than luck is tested for all rows and the mean of all tasks only.";
  if (cheap && cheap.parameters < (top.parameters ?? 0)) {
    text += ` Of these ${cheap.label} tunes the fewest parameters, ${magnitude(cheap.parameters)} against ${magnitude(top.parameters)}.`;
  }
  return text;
}

const sortBy = (name) => (column) => {
  const same = state[name].key === column.key;
  if (name === "board") state.sorted = true;
  state[name] = { key: column.key, down: same ? !state[name].down : !(column.key === "name" || column.up) };
  draw();
};

if (DATA.panels.length) {
  for (const id of ["backbone", "suite", "metric", "average", "price", "task", "quantity"]) {
    byId(id).addEventListener("change", (event) => {
      state[id] = event.target.value;
      if (id === "metric") state.chosen = true;
      draw();
    });
  }
  byId("head").addEventListener("change", (event) => {
    state.head = event.target.checked;
    if (state.price.startsWith("parameters")) state.price = state.head ? "parameters_with_head" : "parameters";
    draw();
  });
  byId("search").addEventListener("input", (event) => {
    state.search = event.target.value;
    draw();
  });
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", (event) => event.key === "Escape" && tip.hide());
  draw();
  onResize(byId("scatter"), draw);
} else {
  for (const id of ["controls", "leaderboard", "cost", "tasks", "learning"]) byId(id).hidden = true;
}
startImages();
byId("unscripted").hidden = true;
for (const spot of document.querySelectorAll(".glyph")) spot.append(glyph(spot.dataset.method));
