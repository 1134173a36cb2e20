// Which class was taken for which: a table of buttons, or of many classes a canvas with a cursor.

const MOST_IN_TABLE = 30; // classes; of more a table is neither read nor drawn in time

// Counts by true class, then predicted class.
function countsOf(run) {
  const counts = new Map();
  for (const [true_, said, count] of run.cells) {
    if (!counts.has(true_)) counts.set(true_, new Map());
    counts.get(true_).set(said, count);
  }
  return counts;
}

const images = (count) => `${count.toLocaleString("en")} ${count === 1 ? "image" : "images"}`;

function cellText(part, true_, said, count) {
  if (true_ === said) return `${part.classes[true_]}, told right: ${images(count)}`;
  return `${part.classes[true_]} taken for ${part.classes[said]}: ${images(count)}`;
}

// Draws into `node`; `choose(true, said)` is called where a cell is pressed. `chosen` is [true, said].
function drawMatrix(node, part, run, chosen, choose) {
  const counts = countsOf(run);
  if (part.classes.length > MOST_IN_TABLE) return drawCanvas(node, part, counts, chosen, choose);
  const total = part.counts.test;
  const heads = part.classes.map((name) =>
    element("th", { scope: "col", title: name }, element("span", { class: "turned" }, name)),
  );
  const rows = part.classes.map((name, true_) =>
    element(
      "tr",
      {},
      element("th", { scope: "row", title: name }, element("span", { class: "short" }, name)),
      ...part.classes.map((other, said) => {
        const count = counts.get(true_)?.get(said) ?? 0;
        const kind = true_ === said ? "hit" : "miss";
        if (!count) return element("td", { class: kind }, "");
        const text = cellText(part, true_, said, count);
        const button = element(
          "button",
          {
            type: "button",
            title: text,
            "aria-label": text,
            "aria-pressed": String(chosen?.[0] === true_ && chosen?.[1] === said),
            "data-cell": `${true_},${said}`,
            onclick: () => choose(true_, said),
          },
          String(count),
        );
        const cell = element("td", { class: `${kind} full` }, button);
        cell.style.setProperty("--share", `${(12 + (68 * count) / total[true_]).toFixed(0)}%`);
        return cell;
      }),
    ),
  );
  const focused = document.activeElement?.dataset?.cell;
  const inside = node.contains(document.activeElement);
  node.replaceChildren(
    element(
      "table",
      { class: "matrix" },
      element("caption", {}, "Rows: what it is. Columns: what the model said. Press a number to see its images."),
      element("thead", {}, element("tr", {}, element("td", {}), ...heads)),
      element("tbody", {}, ...rows),
    ),
  );
  if (inside && focused) node.querySelector(`[data-cell="${focused}"]`)?.focus();
}

function drawCanvas(node, part, counts, chosen, choose) {
  const count = part.classes.length;
  const room = Math.max(240, node.clientWidth - 2);
  const side = Math.max(4, Math.min(14, Math.floor(room / count)));
  const size = side * count;
  const ratio = window.devicePixelRatio || 1;
  const canvas = element("canvas", {
    width: Math.round(size * ratio),
    height: Math.round(size * ratio),
    tabindex: 0,
    role: "application",
    "aria-label": `Confusion matrix of ${count} classes. Arrow keys go to the next cell with images, Enter shows them. The most frequent confusions are listed beside it.`,
    "aria-describedby": "matrix-place",
  });
  canvas.style.width = canvas.style.height = `${size}px`;
  const style = getComputedStyle(document.documentElement);
  const paint = canvas.getContext("2d");
  paint.scale(ratio, ratio);
  const draw = (cursor) => {
    paint.clearRect(0, 0, size, size);
    paint.fillStyle = style.getPropertyValue("--soft");
    paint.fillRect(0, 0, size, size);
    for (const [true_, row] of counts) {
      for (const [said, number] of row) {
        paint.globalAlpha = 0.25 + (0.75 * number) / part.counts.test[true_];
        paint.fillStyle = style.getPropertyValue(true_ === said ? "--heat" : "--bad");
        paint.fillRect(said * side, true_ * side, side, side);
      }
    }
    paint.globalAlpha = 1;
    paint.strokeStyle = style.getPropertyValue("--ink");
    paint.lineWidth = 2;
    for (const place of [chosen, cursor]) {
      if (place) paint.strokeRect(place[1] * side - 1, place[0] * side - 1, side + 2, side + 2);
    }
  };
  const words = element("p", { class: "remark", id: "matrix-place", "aria-live": "polite" }, "Rows: what it is. Columns: what the model said. Press a cell to see its images.");
  // cells with images by row, then column
  const full = [...counts].flatMap(([true_, row]) => [...row].map(([said, number]) => [true_, said, number]));
  full.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  let cursor = chosen ? full.find((c) => c[0] === chosen[0] && c[1] === chosen[1]) : null;
  const go = (next) => {
    if (!next) return;
    cursor = next;
    draw(cursor);
    words.textContent = cellText(part, ...cursor);
    node.scrollTo({ left: cursor[1] * side - node.clientWidth / 2, top: cursor[0] * side - node.clientHeight / 2 });
  };
  const nearest = (found, by) => found.sort((a, b) => by(a) - by(b))[0];
  canvas.addEventListener("keydown", (event) => {
    const [row, column] = cursor ?? [-1, -1];
    const moves = {
      ArrowRight: () => full.find((c) => c[0] > row || (c[0] === row && c[1] > column)),
      ArrowLeft: () => full.findLast((c) => c[0] < row || (c[0] === row && c[1] < column)),
      ArrowDown: () => nearest(full.filter((c) => c[0] > row), (c) => (c[0] - row) * count + Math.abs(c[1] - column)),
      ArrowUp: () => nearest(full.filter((c) => c[0] < row), (c) => (row - c[0]) * count + Math.abs(c[1] - column)),
    };
    if (moves[event.key]) go(moves[event.key]());
    else if ((event.key === "Enter" || event.key === " ") && cursor) choose(cursor[0], cursor[1]);
    else return;
    event.preventDefault();
  });
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [Math.floor((event.clientY - box.top) / side), Math.floor((event.clientX - box.left) / side)];
  };
  // a cell is small: what is pressed is the nearest one with images, a few pixels away at most
  const near = (event) => {
    const [row, column] = at(event);
    const reach = Math.max(0, Math.round(6 / side));
    const found = full.filter((c) => Math.abs(c[0] - row) <= reach && Math.abs(c[1] - column) <= reach);
    return nearest(found, (c) => Math.abs(c[0] - row) + Math.abs(c[1] - column));
  };
  canvas.addEventListener("pointermove", (event) => {
    const found = near(event);
    if (found) tip.show(event.clientX, event.clientY, element("div", {}, cellText(part, ...found)));
    else tip.hide();
  });
  canvas.addEventListener("pointerleave", () => tip.hide());
  canvas.addEventListener("click", (event) => {
    const found = near(event);
    if (found) choose(found[0], found[1]);
  });
  const inside = node.contains(document.activeElement);
  const { scrollLeft, scrollTop } = node;
  node.replaceChildren(canvas, words);
  node.scrollTo({ left: scrollLeft, top: scrollTop });
  if (inside) canvas.focus({ preventScroll: true });
  draw(cursor);
}
