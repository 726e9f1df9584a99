// Few-shot models: training images and prototypes on the principal axes of the training images.

/**
 * Where an image lies among them, and the nearest ones.
 * @param {Case} one
 */
function placeCard(one) {
  if (!one.near || !data.plane) return null;
  const { place, nearest, typical } = one.near;
  const away = typical
    ? `${percent(typical, 0)} of the training images are at least as far from their nearest neighbour.`
    : "No training image is as far from its nearest neighbour: it is unlike all of them.";
  return el("section", { class: "card plane", "aria-label": "Where it lies" }, fold("plane", "Where this image lies",
    el("p", { class: "soft" }, "The star is this image; dots are training images, diamonds prototypes tied to the mean "
      + "of the images that match them."),
    el("div", { class: "aside" },
      el("div", {}, scrolled("Plane", drawnPlane(data.plane, place)), legend(data.plane)),
      el("div", {}, el("h3", {}, "nearest training images"),
        el("ul", {}, nearest.map(([path, name, distance]) =>
          el("li", {}, `${name}, ${distance.toFixed(2)} away: `, el("span", { class: "soft" }, tail(path, 40))))),
        el("p", { class: "note" }, away)))));
}

/** In the gallery. */
function planeCard() {
  if (!data.plane) return null;
  return el("section", { class: "card plane" },
    el("h2", {}, "Training images and prototypes"),
    el("p", { class: "soft" }, "On their two principal axes. Diamonds are prototypes, tied to the mean of the images "
      + "that match them; hollow ones are ambiguous or unused."),
    scrolled("Plane", drawnPlane(data.plane, null)), legend(data.plane));
}

/** @param {Plane} plane */
function legend({ labels }) {
  const present = [...new Set(labels)].sort((a, b) => a - b).slice(0, 40);
  return el("p", { class: "chips" },
    present.map((c) => el("span", { class: "chip" }, swatch(paletteOf(c)), nameOf(c))));
}

/**
 * @param {Plane} plane
 * @param {Near["place"] | null} place
 */
function drawnPlane({ samples, labels, prototypes, means, winners, shares, flagged }, place) {
  const W = 640, H = 460, M = 34, edge = "var(--card)", ink = "var(--ink)", soft = "var(--soft)";
  const all = [...samples, ...prototypes, ...(place ? [place] : [])];
  const xs = all.map(([x]) => x), ys = all.map(([, y]) => y);
  const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const X = (/** @type {number} */ x) => M + (W - 2 * M) * (x - x0) / (x1 - x0 || 1);
  const Y = (/** @type {number} */ y) => H - M - (H - 2 * M) * (y - y0) / (y1 - y0 || 1);
  const titled = (/** @type {SVGElement} */ node, /** @type {string} */ words) => {
    node.append(svg("title", {}, words));
    return node;
  };
  const words = { "font-size": 12, fill: soft }, middle = { ...words, "text-anchor": "middle" };
  const label = "training images and prototypes on their two principal axes";
  return svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label },
    samples.map(([x, y], n) => titled(mark(labels[n], X(x), Y(y)), nameOf(labels[n]))),
    prototypes.map(([x, y], j) =>
      svg("line", { x1: X(x), y1: Y(y), x2: X(means[j][0]), y2: Y(means[j][1]), stroke: soft })),
    prototypes.map(([x, y], j) => titled(svg("rect", {
      x: -7, y: -7, width: 14, height: 14, transform: `translate(${X(x)} ${Y(y)}) rotate(45)`,
      fill: flagged.includes(j) ? edge : ink, stroke: ink, "stroke-width": 1.5,
    }), `prototype ${data.prototypes[j].n} of ${nameOf(winners[j])}`)),
    prototypes.map(([x, y], j) => svg("text", {
      x: X(x) + (X(x) > 0.8 * W ? -11 : 11), y: Y(y) - 9, "text-anchor": X(x) > 0.8 * W ? "end" : "start",
      "font-size": 12, fill: ink, stroke: edge, "stroke-width": 3, "paint-order": "stroke",
    }, `${nameOf(winners[j])} ${data.prototypes[j].n}`)),
    place ? titled(star(X(place[0]), Y(place[1])), "this image") : null,
    svg("text", { ...middle, x: W / 2, y: H - 6 }, `first principal axis (${percent(shares[0], 0)} of the variance)`),
    svg("text", { ...middle, x: 12, y: H / 2, transform: `rotate(-90 12 ${H / 2})` },
      `second (${percent(shares[1], 0)})`));
}

/**
 * Of a training image: colours go round, and then shapes change.
 * @param {number} c
 * @param {number} x
 * @param {number} y
 */
function mark(c, x, y) {
  const look = { fill: paletteOf(c), stroke: "var(--card)" };
  return Math.floor(c / data.palette.length) % 2 ? svg("rect", { x: x - 4, y: y - 4, width: 8, height: 8, ...look })
    : svg("circle", { cx: x, cy: y, r: 4.5, ...look });
}

/**
 * @param {number} x
 * @param {number} y
 */
const star = (x, y) => svg("path", {
  d: `M${x},${y - 13} l3.6,8.4 9.1,.8 -6.9,6 2.1,8.9 -7.9,-4.7 -7.9,4.7 2.1,-8.9 -6.9,-6 9.1,-.8 z`,
  fill: "#D55E00", stroke: "var(--card)", "stroke-width": 1.5,
});
