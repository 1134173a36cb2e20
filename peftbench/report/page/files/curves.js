// Learning curves: one line a method, hidden and shown by buttons, named where the pointer is.

function drawCurves(node, state, panel, labels) {
  const all = panel.curves[state.task]?.[state.quantity] ?? [];
  const curves = all.filter((curve) => labels.has(curve.label) && !state.hidden.has(curve.label));
  if (!curves.length) {
    node.replaceChildren(element("p", { class: "empty" }, all.length ? "Every curve is hidden." : "No finished run has a history here."));
    return;
  }
  const width = Math.max(280, node.clientWidth);
  const height = Math.round(Math.max(280, Math.min(420, 0.42 * width)));
  const edge = { left: 52, right: width < 560 ? 14 : 110, top: 20, bottom: 40 };
  const xs = curves.flatMap((curve) => curve.x);
  const ys = curves.flatMap((curve) => curve.y);
  const [first, last] = [Math.min(...xs), Math.max(...xs)];
  const [low, high] = [Math.min(...ys), Math.max(...ys)];
  const pad = 0.04 * (high - low) || 1;
  const x = (value) => edge.left + ((value - first) / (last - first || 1)) * (width - edge.left - edge.right);
  const y = (value) => edge.top + ((high + pad - value) / (high - low + 2 * pad)) * (height - edge.top - edge.bottom);
  const root = shape("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `${DATA.quantities[state.quantity]} over epochs, ${curves.length} methods` });

  for (const value of ticks(low - pad, high + pad, height / 60)) {
    root.append(shape("line", { class: "grid", x1: edge.left, x2: width - edge.right, y1: y(value), y2: y(value) }));
    root.append(shape("text", { x: edge.left - 8, y: y(value) + 4, "text-anchor": "end" }, String(value)));
  }
  for (const value of ticks(first, last, (width - edge.left - edge.right) / 80).filter(Number.isInteger)) {
    root.append(shape("text", { x: x(value), y: height - edge.bottom + 18, "text-anchor": "middle" }, String(value)));
  }
  root.append(shape("text", { class: "axis", x: (edge.left + width - edge.right) / 2, y: height - 5, "text-anchor": "middle" }, "epoch"));
  root.append(shape("text", { class: "axis", x: 8, y: 13 }, DATA.quantities[state.quantity]));

  const lines = curves.map((curve) => {
    const points = curve.x.map((value, i) => [x(value), y(curve.y[i])]);
    const path = shape("path", {
      class: `curve s${colour(curve.method)}`,
      d: `M${points.map((p) => p.map((v) => v.toFixed(1)).join(",")).join("L")}`,
      "data-label": curve.label,
    });
    return { curve, points, path };
  });
  root.append(...lines.map((line) => line.path));
  if (edge.right > 50) root.append(...endNames(lines, height - edge.bottom));
  for (const { curve, points } of lines) {
    const [across, up] = points[points.length - 1];
    root.append(shape("g", { transform: `translate(${across} ${up})` }, mark(curve.method, 3.6)));
  }
  node.replaceChildren(root);
  const near = (found) => {
    root.classList.toggle("dim", Boolean(found));
    lines.forEach((line) => line.path.classList.toggle("near", line === found?.line));
    if (!found) return tip.hide();
    const box = root.getBoundingClientRect();
    const { curve, points } = found.line;
    const digits = state.quantity === "loss" ? 3 : 1;
    tip.show(
      box.left + points[found.i][0],
      box.top + points[found.i][1],
      element("b", {}, glyph(curve.method), curve.label),
      element("div", {}, `epoch ${curve.x[found.i]}: ${curve.y[found.i].toFixed(digits)}${state.quantity === "loss" ? "" : " %"}`),
    );
  };
  root.addEventListener("pointermove", (event) => {
    const box = root.getBoundingClientRect();
    const [px, py] = [event.clientX - box.left, event.clientY - box.top];
    let found = null;
    let least = 24;
    for (const line of lines) {
      line.points.forEach(([ax, ay], i) => {
        const away = Math.hypot(px - ax, py - ay);
        if (away < least) [least, found] = [away, { line, i }];
      });
    }
    near(found);
  });
  root.addEventListener("pointerleave", () => near(null));
}

// Names right of the ends of the lines, those that would cover another pushed down.
function endNames(lines, floor) {
  const gap = 13;
  const ordered = [...lines].sort((a, b) => last(a)[1] - last(b)[1]);
  const places = ordered.map((line) => last(line)[1]);
  for (let i = 1; i < places.length; i++) places[i] = Math.max(places[i], places[i - 1] + gap);
  const over = places[places.length - 1] - floor;
  if (over > 0) {
    places[places.length - 1] -= over;
    for (let i = places.length - 2; i >= 0; i--) places[i] = Math.min(places[i], places[i + 1] - gap);
  }
  return ordered.map((line, i) =>
    shape("text", { class: `label l${colour(line.curve.method)}`, x: last(line)[0] + 9, y: places[i] + 4 }, line.curve.label),
  );
}
const last = (line) => line.points[line.points.length - 1];

function drawChips(node, state, panel, labels, change) {
  const all = (panel.curves[state.task]?.[state.quantity] ?? []).filter((curve) => labels.has(curve.label));
  const focused = node.contains(document.activeElement) ? document.activeElement.dataset.label : null;
  const chip = (curve) =>
    element(
      "button",
      {
        type: "button",
        "aria-pressed": String(!state.hidden.has(curve.label)),
        "data-label": curve.label,
        onclick: () => {
          if (!state.hidden.delete(curve.label)) state.hidden.add(curve.label);
          change();
        },
      },
      glyph(curve.method),
      curve.label,
    );
  const shown = all.some((curve) => !state.hidden.has(curve.label));
  const every = element(
    "button",
    {
      type: "button",
      "data-label": "\u0000all",
      onclick: () => {
        state.hidden = new Set(shown ? all.map((curve) => curve.label) : []);
        change();
      },
    },
    shown ? "hide all" : "show all",
  );
  node.replaceChildren(...all.map(chip), ...(all.length > 1 ? [every] : []));
  if (focused) [...node.children].find((button) => button.dataset.label === focused)?.focus();
}
