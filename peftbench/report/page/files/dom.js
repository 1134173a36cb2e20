// Elements, numbers as texts, and the tooltip. Texts only ever become text nodes.
const SVG = "http://www.w3.org/2000/svg";
const DATA = JSON.parse(document.getElementById("data").textContent);

const byId = (id) => document.getElementById(id);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const element = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);
const shape = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

const colour = (method) => DATA.looks[method]?.colour ?? 6;

// The mark of a method as a shape around the origin, `radius` pixels.
function mark(method, radius) {
  const name = DATA.looks[method]?.marker ?? "o";
  const size = name === "*" ? 1.45 * radius : name === "D" ? 0.8 * radius : radius;
  return shape("path", { class: `mark f${colour(method)}`, d: DATA.markers[name], transform: `scale(${size})` });
}

function glyph(method) {
  const box = shape("svg", { width: 16, height: 16, viewBox: "-8 -8 16 16", "aria-hidden": "true" });
  box.append(mark(method, 5));
  return box;
}

const percent = (share) => (100 * share).toFixed(1);

// 768, 36.9k, 1.25M: three digits.
function magnitude(count) {
  for (const [unit, letter] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (count >= unit) return three(count / unit) + letter;
  }
  return Number.isInteger(count) ? String(count) : three(count);
}
function three(value) {
  if (value >= 1000) return Math.round(value).toLocaleString("en");
  return value.toFixed(value < 9.995 ? 2 : value < 99.95 ? 1 : 0);
}

const counted = (cost) => cost.name.startsWith("parameters");
const priceText = (cost, value) => (counted(cost) ? magnitude(value) : three(value));
// Of an axis, without zeros that say nothing: 10k, not 10.0k.
const tickText = (cost, value) => priceText(cost, value).replace(/\.0+(?=\D|$)/, "").replace(/(\.\d*?)0+(?=\D|$)/, "$1");

const tip = {
  node: byId("tip"),
  show(x, y, ...children) {
    this.node.replaceChildren(...children);
    this.node.hidden = false;
    const { offsetWidth: width, offsetHeight: height } = this.node;
    const left = Math.max(8, Math.min(x + 14, document.documentElement.clientWidth - width - 8));
    const above = y - height - 14;
    this.node.style.left = `${left + window.scrollX}px`;
    this.node.style.top = `${(above > 8 ? above : y + 18) + window.scrollY}px`;
  },
  hide() {
    this.node.hidden = true;
  },
};

// Round steps that cover low to high, about `count` of them.
function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count) || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((m) => m * power >= raw) * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
    found.push(Number((i * step).toPrecision(12)));
  }
  return found;
}

// Draw again when a plot changes its width.
function onResize(node, draw) {
  let width = 0;
  new ResizeObserver(() => {
    const now = Math.round(node.clientWidth);
    if (now && now !== width) {
      width = now;
      draw();
    }
  }).observe(node);
}
