// Pictures of single images, by their number in the test split.

const MOST_SHOWN = 48; // of one choice; those without a picture are names alone

// Numbers of the images of a cell, the most confident first; of no cell, all mistakes.
function numbersOf(part, run, chosen) {
  const wanted = (number) => {
    const [true_, said] = [part.labels[number], run.said[number]];
    return chosen ? true_ === chosen[0] && said === chosen[1] : true_ !== said;
  };
  const found = run.said.map((_, number) => number).filter(wanted);
  return found.sort((a, b) => run.percent[b] - run.percent[a] || a - b);
}

function drawPictures(node, heading, part, run, chosen) {
  const numbers = numbersOf(part, run, chosen);
  const title = chosen
    ? cellText(part, chosen[0], chosen[1], numbers.length)
    : numbers.length
      ? `The most confident of ${numbers.length.toLocaleString("en")} ${numbers.length === 1 ? "mistake" : "mistakes"}`
      : "No mistake";
  heading.textContent = title;
  // of equal place those with a picture say more
  const shown = [...numbers].sort((a, b) => Boolean(part.thumbs[b]) - Boolean(part.thumbs[a])).slice(0, MOST_SHOWN);
  shown.sort((a, b) => numbers.indexOf(a) - numbers.indexOf(b));
  const named = part.names !== null || Object.keys(part.thumbs).length > 0;
  if (!named) return node.replaceChildren();
  const more = numbers.length - shown.length;
  node.replaceChildren(
    element("ul", { class: "pictures" }, ...shown.map((number) => onePicture(part, run, number))),
    ...(more > 0 ? [element("p", { class: "remark" }, `and ${more.toLocaleString("en")} more`)] : []),
  );
}

// The folder is that of the class as a rule, which stands below.
const lastPart = (name) => name.split("/").pop() || name;

function onePicture(part, run, number) {
  const name = part.names?.[number] ?? `image ${number + 1}`;
  const [true_, said] = [part.classes[part.labels[number]], part.classes[run.said[number]]];
  const words = `said ${said}, ${run.percent[number]} %`;
  const picture = part.thumbs[number]
    ? element("img", { src: part.thumbs[number], alt: `${name}: is ${true_}, ${words}`, loading: "lazy" })
    : element("span", { class: "absent" }, "no picture");
  return element(
    "li",
    {},
    picture,
    element("span", { class: "file", title: name }, lastPart(name)),
    element("span", { class: "muted" }, `is ${true_}`, element("br"), words),
  );
}

// Training pictures, whole and as the model sees them.
function drawSamples(node, part) {
  const samples = part.samples;
  node.hidden = !samples?.items.length;
  if (node.hidden) return;
  const items = samples.items.map((item) =>
    element(
      "li",
      {},
      element("img", { src: item.whole, alt: `${item.name}, ${part.classes[item.class]}, the whole picture`, loading: "lazy" }),
      element("img", { class: "seen", src: item.seen, alt: `${item.name} as the model sees it`, loading: "lazy" }),
      element("span", { class: "file", title: item.name }, lastPart(item.name)),
      element("span", { class: "muted" }, part.classes[item.class]),
    ),
  );
  node.replaceChildren(
    element("h3", {}, "What the model sees"),
    element("p", { class: "remark" }, `${samples.size} × ${samples.size} pixels, ${samples.how}, on the right of each picture. Where details are lost, a larger backbone.image_size may help.`),
    element("ul", { class: "pictures pairs" }, ...items),
  );
}
