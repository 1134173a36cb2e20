// Score against a cost, with the frontier, intervals and a tooltip at each point.

function scatterPoints(state, panel, rows) {
  const cost = DATA.costs.find((c) => c.name === state.price);
  const points = [];
  let absent = 0;
  for (const row of rows) {
    const cell = row.cells[state.average];
    const price = panel.costs[row.label];
    const value = price?.[cost.name];
    const elsewhere = cost.measured && panel.devices.length > 1 && price?.device !== state.device;
    if (cell?.state !== "ok" || !value || elsewhere) {
      absent += 1;
      continue;
    }
    const [low, high] = ends(cell);
    points.push({ row, cell, x: value[0], left: value[1], right: value[2], y: cell.mean, low, high });
  }
  return { cost, points, absent };
}

// Points that no other beats at the same cost or less.
function frontier(points) {
  const best = [];
  for (const point of [...points].sort((a, b) => a.x - b.x || b.y - a.y)) {
    if (!best.length || point.y > best[best.length - 1].y) best.push(point);
  }
  return best;
}

// Logarithmic where costs differ much, with a place for zero; else linear.
function scaleOf(values, from, to, zero) {
  const positive = values.filter((value) => value > 0);
  const low = Math.min(...positive);
  const high = Math.max(...positive);
  if (!positive.length || high <= 20 * low) {
    const [least, most] = [Math.min(...values), Math.max(...values)];
    const pad = 0.06 * (most - least) || 0.1 * most || 1;
    const at = (value) => from + ((value - least + pad) / (most - least + 2 * pad)) * (to - from);
    return { at, ticks: ticks(least - pad, most + pad, (to - from) / 90).filter((t) => t >= 0) };
  }
  const room = positive.length < values.length ? zero : 0;
  const [a, b] = [Math.log10(low) - 0.12, Math.log10(high) + 0.12];
  const at = (value) =>
    value <= 0 ? from + room / 2 : from + room + ((Math.log10(value) - a) / (b - a)) * (to - from - room);
  const wide = (to - from) / (b - a) > 150;
  const found = room ? [0] : [];
  for (let e = Math.floor(a); e <= b; e++) {
    for (const m of wide ? [1, 2, 5] : [1]) {
      const value = Number(`${m}e${e}`);
      if (Math.log10(value) >= a && Math.log10(value) <= b) found.push(value);
    }
  }
  return { at, ticks: found };
}

function drawScatter(node, state, panel, rows) {
  const { cost, points, absent } = scatterPoints(state, panel, rows);
  if (!points.length) {
    node.replaceChildren(element("p", { class: "empty" }, "No row is complete yet for this choice."));
    return { absent, cost };
  }
  const width = Math.max(280, node.clientWidth);
  const height = Math.round(Math.max(320, Math.min(520, 0.5 * width)));
  const edge = { left: 52, right: 18, top: 20, bottom: 46 };
  const x = scaleOf(points.map((p) => p.x), edge.left, width - edge.right, 46);
  const [low, high] = [Math.min(...points.map((p) => p.low)), Math.max(...points.map((p) => p.high))];
  const pad = 0.06 * (high - low) || 0.01;
  const y = (value) => edge.top + ((high + pad - value) / (high - low + 2 * pad)) * (height - edge.top - edge.bottom);
  const root = shape("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "group", "aria-label": `${state.average} against ${cost.heading}` });

  for (const value of ticks(100 * (low - pad), 100 * (high + pad), height / 60)) {
    const up = y(value / 100);
    root.append(shape("line", { class: "grid", x1: edge.left, x2: width - edge.right, y1: up, y2: up }));
    root.append(shape("text", { x: edge.left - 8, y: up + 4, "text-anchor": "end" }, String(value)));
  }
  for (const value of x.ticks) {
    const across = x.at(value);
    root.append(shape("line", { class: "grid", x1: across, x2: across, y1: edge.top, y2: height - edge.bottom }));
    root.append(shape("text", { x: across, y: height - edge.bottom + 18, "text-anchor": "middle" }, tickText(cost, value)));
  }
  root.append(shape("text", { class: "axis", x: (edge.left + width - edge.right) / 2, y: height - 8, "text-anchor": "middle" }, cost.heading));
  root.append(shape("text", { class: "axis", x: 8, y: 13 }, `${DATA.metrics[state.metric]} in %, ${state.average}`));

  const best = frontier(points);
  const steps = best.map((p, i) => (i ? `H${x.at(p.x)}V${y(p.y)}` : `M${x.at(p.x)},${y(p.y)}`));
  root.append(shape("path", { class: "frontier", d: `${steps.join("")}H${width - edge.right}` }));

  const marks = points.map((point) => {
    const [across, up] = [x.at(point.x), y(point.y)];
    const stroke = `whisker s${colour(point.row.method)}`;
    const group = shape("g", {
      class: "point",
      tabindex: 0,
      role: "link",
      "aria-label": `${point.row.label}: ${percent(point.y)} %, ${cost.short} ${priceText(cost, point.x)}`,
      "data-label": point.row.label,
    });
    group.append(shape("line", { class: stroke, x1: across, x2: across, y1: y(point.low), y2: y(point.high) }));
    if (point.left !== null && point.right > point.left) {
      group.append(shape("line", { class: stroke, x1: x.at(point.left), x2: x.at(point.right), y1: up, y2: up }));
    }
    group.append(shape("circle", { class: "ring", cx: across, cy: up, r: 10 }));
    group.append(shape("g", { transform: `translate(${across} ${up})` }, mark(point.row.method, 5.6)));
    return { point, group, across, up, on: best.includes(point) };
  });
  root.append(...[...marks].sort((a, b) => a.on - b.on).map((m) => m.group));
  for (const label of placeLabels(marks, width, height, edge)) {
    root.append(shape("text", { class: `label l${colour(label.method)}`, x: label.x, y: label.y, "aria-hidden": "true" }, label.text));
  }
  node.replaceChildren(root);
  listen(root, marks, cost, state);
  return { absent, cost };
}

// Names beside their points, the frontier first; one without a free place is left to the tooltip.
function placeLabels(marks, width, height, edge) {
  const taken = marks.flatMap(({ across, up, point }) => [[across - 7, up - 7, across + 7, up + 7]]);
  const placed = [];
  const meets = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
  for (const { point, across, up } of [...marks].sort((a, b) => b.on - a.on || b.point.y - a.point.y)) {
    const text = point.row.label;
    const long = 6.4 * text.length;
    const spots = [[10, 4], [-10 - long, 4], [-long / 2, -12], [-long / 2, 20], [9, -9], [9, 17], [-9 - long, -9], [-9 - long, 17]];
    for (const [dx, dy] of spots) {
      const box = [across + dx, up + dy - 11, across + dx + long, up + dy + 3];
      const inside = box[0] > edge.left && box[2] < width - 2 && box[1] > edge.top && box[3] < height - edge.bottom;
      if (inside && !taken.some((other) => meets(box, other))) {
        taken.push(box);
        placed.push({ text, method: point.row.method, x: across + dx, y: up + dy });
        break;
      }
    }
  }
  return placed;
}

function pointTip(point, cost) {
  const line = (text) => element("div", {}, text);
  const { cell, row } = point;
  const parts = [element("b", {}, glyph(row.method), row.label)];
  const spread = cell.sd === null || cell.sd === undefined ? "" : ` ± ${percent(cell.sd)}`;
  parts.push(line(`${percent(point.y)} %${spread} (n = ${cell.n})`));
  if (cell.low !== undefined && cell.low !== null) parts.push(line(intervalText(cell)));
  const range = point.left !== null && point.right > point.left ? ` (${priceText(cost, point.left)} to ${priceText(cost, point.right)})` : "";
  parts.push(line(`${cost.short}: ${priceText(cost, point.x)}${range}`));
  return parts;
}

function listen(root, marks, cost, state) {
  const show = (found) => {
    marks.forEach((m) => m.group.classList.toggle("near", m === found));
    if (!found) return tip.hide();
    const box = root.getBoundingClientRect();
    tip.show(box.left + found.across, box.top + found.up, ...pointTip(found.point, cost));
  };
  root.addEventListener("pointermove", (event) => {
    const box = root.getBoundingClientRect();
    const away = (m) => Math.hypot(event.clientX - box.left - m.across, event.clientY - box.top - m.up);
    const nearest = marks.reduce((a, b) => (away(b) < away(a) ? b : a));
    show(away(nearest) < 28 ? nearest : null);
  });
  root.addEventListener("pointerleave", () => show(null));
  for (const found of marks) {
    const open = () => {
      choosePart(found.point.row.method);
      location.hash = `method-${found.point.row.method}`;
    };
    found.group.addEventListener("focus", () => show(found));
    found.group.addEventListener("blur", () => show(null));
    found.group.addEventListener("click", open);
    found.group.addEventListener("keydown", (event) => {
      if (event.key === "Enter") open();
      if (event.key === "Escape") show(null);
    });
  }
}
