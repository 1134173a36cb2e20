// Single images of one data set and one run: matrix, classes, pictures, what val said, commands.
// Where a data set has folds, a run may be all folds together, which tested each image once.

const view = { data: 0, row: 0, run: 0, cell: null, sort: { key: "recall", down: false } };
const MOST_CONFUSIONS = 20;

const rowName = (row, part) => (unique(part.rows.map((r) => r.backbone)).length > 1 ? `${row.label} · ${row.backbone}` : row.label);

// The runs that were put together; a run that was not is alone.
const membersOf = (row, run) => (run.of ? run.of.map((place) => row.runs[place]) : [run]);

function runName(part, row, run) {
  if (!part.folds) return `seed ${run.seed}`;
  const all = membersOf(row, run).length === part.folds_in_all;
  const folds = run.of ? (all ? `all ${run.of.length} folds` : `${run.of.length} of ${part.folds_in_all} folds`) : `fold ${run.fold}`;
  return `seed ${run.seed}, ${folds}`;
}

// What was said, by the number of the image: of one fold, and of some, with holes.
function withPlaces(part, row, run) {
  if (!part.folds) return run;
  const found = { said: new Array(part.labels.length), percent: new Array(part.labels.length) };
  for (const one of membersOf(row, run)) {
    const { start } = part.folds.find((fold) => fold.fold === one.fold);
    for (const key of ["said", "percent"]) one[key].forEach((value, i) => (found[key][start + i] = value));
  }
  return { ...run, ...found };
}

// The data set with the counts of the images that a run tested, and of those that trained it.
function asTested(part, row, run) {
  if (!part.folds) return part;
  const folds = membersOf(row, run).map((one) => part.folds.find((fold) => fold.fold === one.fold));
  if (folds.length === 1) return { ...part, counts: folds[0].counts, majority: folds[0].majority };
  const test = part.classes.map((_, number) => folds.reduce((sum, fold) => sum + fold.counts.test[number], 0));
  return { ...part, counts: { test }, majority: folds.length === part.folds.length ? part.majority : null };
}

function settleImages() {
  const part = DATA.images[view.data];
  const rows = part.rows;
  if (!rows[view.row]?.runs.some((run) => run.cells)) view.row = rows.findIndex((row) => row.runs.some((run) => run.cells));
  const row = rows[view.row];
  if (!row.runs[view.run]?.cells) view.run = row.runs.findIndex((run) => run.cells);
  const shown = rows.map((r, i) => [r, i]).filter(([r]) => r.runs.some((run) => run.cells));
  offer("images-data", DATA.images.map((p, i) => [String(i), p.name]), String(view.data));
  offer("images-row", shown.map(([r, i]) => [String(i), rowName(r, part)]), String(view.row));
  const runs = row.runs.map((r, i) => [r, i]).filter(([r]) => r.cells);
  offer("images-run", runs.map(([r, i]) => [String(i), runName(part, row, r).replace("seed ", "")]), String(view.run));
  const run = row.runs[view.run];
  return { part: asTested(part, row, run), row, run: withPlaces(part, row, run) };
}

function drawImages() {
  const { part, row, run } = settleImages();
  if (view.cell && !run.cells.some((c) => c[0] === view.cell[0] && c[1] === view.cell[1])) view.cell = null;
  byId("images-finding").textContent = imagesFinding(part, row, run);
  const left = part.rows.filter((r) => !r.runs.some((one) => one.cells)).length;
  const remark = [part.remark, left ? `Of ${part.rows.length} rows the ${part.rows.length - left} best are here.` : ""].filter(Boolean).join(" ");
  byId("images-remark").textContent = remark;
  byId("images-remark").hidden = !remark;
  const choose = (true_, said) => {
    const same = view.cell?.[0] === true_ && view.cell?.[1] === said;
    view.cell = same ? null : [true_, said];
    drawImages();
  };
  drawMatrix(byId("matrix"), part, run, view.cell, choose);
  drawPictures(byId("cell-pictures"), byId("cell-title"), part, run, view.cell);
  byId("cell-all").hidden = view.cell === null;
  drawConfusions(byId("confusions"), part, run, choose);
  drawClasses(part, run);
  drawSamples(byId("samples"), part);
  drawVal(byId("val"), row, run);
  drawCommands(byId("commands"), part, row, run);
}

function imagesFinding(part, row, run) {
  const total = part.counts.test.reduce((sum, count) => sum + count, 0);
  let text = `${rowName(row, part)}, ${runName(part, row, run)}: ${percent(run.right)} % of ${total.toLocaleString("en")} test images right`;
  if (run.mean_per_class !== null) text += `, ${percent(run.mean_per_class)} % mean per class`;
  text += run.of ? ". Each image was tested once, by a model that was not trained on it." : ".";
  if (part.majority) text += ` Always saying ${part.classes[part.majority.class]}, the largest class of training, would be right for ${percent(part.majority.share)} %.`;
  text += ratesOf(row, run);
  const others = row.runs.filter((other) => Boolean(other.of) === Boolean(run.of) && other.fold === run.fold).length - 1;
  if (others > 0) text += ` ${others} other ${others === 1 ? "seed" : "seeds"} of this row: mistakes of one run are not those of the method.`;
  return text;
}

const rate = (value) => String(Number(value.toPrecision(3)));

function ratesOf(row, run) {
  const members = membersOf(row, run).filter((one) => one.lr !== null);
  if (!members.length) return "";
  const rates = unique(members.map((one) => one.lr)).sort((a, b) => a - b);
  const shown = rates.length > 1 ? `rates ${rate(rates[0])} to ${rate(rates[rates.length - 1])}` : `rate ${rate(rates[0])}`;
  const { tuning } = members[0];
  const where = run.of ? "val of each fold" : "val";
  return ` Learning ${shown}, ${tuning ? `chosen on ${where} among ${tuning.trials} trials` : "not tuned on this data set"}.`;
}

function drawConfusions(node, part, run, choose) {
  const wrong = run.cells.filter(([true_, said]) => true_ !== said).sort((a, b) => b[2] - a[2] || a[0] - b[0] || a[1] - b[1]);
  const focused = document.activeElement?.dataset?.confusion;
  const items = wrong.slice(0, MOST_CONFUSIONS).map(([true_, said, count]) =>
    element(
      "li",
      {},
      element(
        "button",
        {
          type: "button",
          "aria-pressed": String(view.cell?.[0] === true_ && view.cell?.[1] === said),
          "data-confusion": `${true_},${said}`,
          onclick: () => choose(true_, said),
        },
        element("b", {}, String(count)),
        ` of ${part.counts.test[true_]}: ${part.classes[true_]} taken for ${part.classes[said]}`,
      ),
    ),
  );
  const more = wrong.length - items.length;
  node.replaceChildren(
    ...(items.length ? [element("ol", { class: "confusions" }, ...items)] : [element("p", {}, "No class was taken for another.")]),
    ...(more > 0 ? [element("p", { class: "remark" }, `and ${more.toLocaleString("en")} rarer ones in the matrix`)] : []),
  );
  if (focused) node.querySelector(`[data-confusion="${focused}"]`)?.focus();
}

function drawClasses(part, run) {
  const taken = new Map(); // the class that each is taken for most often
  for (const [true_, said, count] of run.cells) {
    if (true_ !== said && count > (taken.get(true_)?.[1] ?? 0)) taken.set(true_, [said, count]);
  }
  const rows = part.classes.map((name, number) => ({ label: name, number }));
  const share = (values) => (row) => values[row.number];
  const shown = (value) => element("td", { class: value === null ? "none" : null }, value === null ? "–" : percent(value));
  const columns = [
    { key: "name", head: "class", value: (row) => row.label, cell: (row) => element("th", { scope: "row", title: row.label }, element("span", { class: "short" }, row.label)) },
    ...["train", "val", "test"].filter((split) => part.counts[split]).map((split) => ({
      key: split,
      head: split,
      title: `images in ${split}`,
      value: (row) => part.counts[split][row.number],
      cell: (row) => element("td", {}, part.counts[split][row.number].toLocaleString("en")),
    })),
    { key: "precision", head: "precision", title: "of the images that were said to be of the class, the share that is", value: share(run.precision), cell: (row) => shown(run.precision[row.number]) },
    { key: "recall", head: "recall", title: "of the images of the class, the share that was told right", value: share(run.recall), cell: (row) => shown(run.recall[row.number]) },
    {
      key: "taken",
      head: "most often taken for",
      words: true,
      value: (row) => taken.get(row.number)?.[1] ?? null,
      cell: (row) => {
        const found = taken.get(row.number);
        return element("td", { class: found ? "words" : "words none" }, found ? `${part.classes[found[0]]} (${found[1]})` : "–");
      },
    },
  ];
  const total = (split) => part.counts[split].reduce((sum, count) => sum + count, 0).toLocaleString("en");
  byId("classes-remark").textContent = `${part.classes.length} classes; ${["train", "val", "test"].filter((s) => part.counts[s]).map((s) => `${s} ${total(s)}`).join(", ")} images. Precision and recall in %, ${run.of ? "of all folds together" : "of this run on test"}.`;
  drawTable(byId("classes"), columns, rows, view.sort, (column) => {
    const same = view.sort.key === column.key;
    view.sort = { key: column.key, down: same ? !view.sort.down : !["name", "precision", "recall"].includes(column.key) };
    drawClasses(part, run);
  });
}

// What val said of the trials: their rates, and the looks on the way where there were any. Of all
// folds together, the trial that won on each.
function drawVal(node, row, run) {
  const trials = run.of ? membersOf(row, run).flatMap((one) => one.trials.filter((trial) => trial.chosen).slice(0, 1).map((trial) => ({ ...trial, fold: one.fold }))) : (run.trials ?? row.trials);
  node.hidden = !trials.length;
  if (node.hidden) return;
  const marked = (trial) => trial.chosen && !run.of;
  const body = trials.map((trial) =>
    element(
      "tr",
      { class: marked(trial) ? "chosen" : null },
      ...(run.of ? [element("th", { scope: "row" }, String(trial.fold))] : []),
      element(run.of ? "td" : "th", { scope: run.of ? null : "row" }, trial.lr === null ? "–" : rate(trial.lr)),
      element("td", {}, trial.weight_decay === null ? "–" : rate(trial.weight_decay)),
      element("td", {}, percent(trial.val)),
      element("td", { class: "words" }, trial.looks.length > 1 ? valCurve(trial) : "", trial.stopped ? ` stopped after epoch ${trial.stopped}` : "", marked(trial) ? " chosen" : ""),
    ),
  );
  const heads = [...(run.of ? ["fold"] : []), "learning rate", "weight decay", "val, %", ""];
  const words = run.of ? `The trial of ${row.label} that was best on val of each fold.` : `Trials of ${row.label} on val, the best first.`;
  node.replaceChildren(
    element("h3", {}, "What val said"),
    element("p", { class: "remark" }, `${words} The test images had no part in the choice.`),
    element(
      "div",
      { class: "card scroll box", tabindex: 0, role: "region", "aria-label": "Trials, scrolls" },
      element("table", { class: "small" }, element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))), element("tbody", {}, ...body)),
    ),
  );
}

function valCurve(trial) {
  const [width, height] = [120, 24];
  const [first, last] = [trial.looks[0][0], trial.looks[trial.looks.length - 1][0]];
  const values = trial.looks.map((look) => look[1]);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const at = ([epoch, value]) => [2 + ((epoch - first) / (last - first || 1)) * (width - 4), height - 3 - ((value - low) / (high - low || 1)) * (height - 6)].map((v) => v.toFixed(1)).join(",");
  const words = trial.looks.map(([epoch, value]) => `epoch ${epoch}: ${percent(value)} %`).join(", ");
  return shape("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `val, ${words}` }, shape("title", {}, words), shape("path", { class: "curve s0", d: `M${trial.looks.map(at).join("L")}` }));
}

function drawCommands(node, part, row, run) {
  const line = (words) => {
    const code = element("code", {}, words);
    const copy = element("button", { type: "button", class: "copy", "aria-label": `copy ${words}` }, "copy");
    copy.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(words);
        copy.textContent = "copied";
      } catch {
        getSelection().selectAllChildren(code);
        copy.textContent = "selected";
      }
    });
    return element("p", { class: "command" }, code, copy);
  };
  const members = membersOf(row, row.runs[view.run]);
  const shown = [...members, ...row.runs.filter((one) => one.id && !members.includes(one))];
  const others = shown.slice(1).map((one) => `${one.id} (${runName(part, row, one)})`);
  const each = run.of ? "Each fold has a model of its own. " : "";
  node.replaceChildren(
    element("h3", {}, "Use this model"),
    line(`peftbench predict ${shown[0].id} PATH`),
    line(`peftbench export ${shown[0].id} --out exports/model`),
    element("p", { class: "remark" }, `${each}Run ${shown[0].id}, ${runName(part, row, shown[0])}. `, others.length ? `Others of this row: ${others.join(", ")}.` : ""),
  );
}

function startImages() {
  if (!DATA.images.length) return;
  for (const [id, key] of [["images-data", "data"], ["images-row", "row"], ["images-run", "run"]]) {
    byId(id).addEventListener("change", (event) => {
      view[key] = Number(event.target.value);
      if (key === "data") [view.row, view.cell] = [0, null];
      if (key !== "run") view.run = 0;
      drawImages();
    });
  }
  byId("cell-all").addEventListener("click", () => {
    view.cell = null;
    drawImages();
    byId("cell-title").focus();
  });
  drawImages();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawImages);
  onResize(byId("matrix"), drawImages);
}
