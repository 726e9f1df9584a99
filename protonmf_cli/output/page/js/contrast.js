// Why one class and not another: two logits, row by row.

/** Rows of a contrast; the others are added up. */
const CONTRASTED = 8;

/** @typedef {[first: number, second: number]} Pair */
/** @typedef {[name: string, values: Pair, amount?: string, prototype?: number]} Line */

/**
 * Rows that were made for these two classes, on the same amounts.
 * @param {Case} one
 * @param {number} a
 * @param {number} b
 */
function sameAmounts(one, a, b) {
  const found = one.contrasts.find(({ of }) => (of[0] === a && of[1] === b) || (of[0] === b && of[1] === a));
  if (!found) return null;
  /** @type {(pair: Pair) => Pair} */
  const turn = ([x, y]) => (found.of[0] === a ? [x, y] : [y, x]);
  const change = (/** @type {number} */ c) => {
    const { inside, outside } = changes(one, c, state.edits);
    return inside + outside;
  };
  /** @type {Line[]} */
  const lines = found.rows.map(([j, amount, x, y]) => [fullTitleOf(j), turn([amount * x, amount * y]), plain(amount), j]);
  const [more, first, second] = found.rest;
  if (more) lines.push([`${more} more prototypes`, turn([first, second])]);
  if (one.unplaced) lines.push(["no place", turn(found.unplaced)]);
  lines.push(["residual", turn(found.residual)], ["bias", turn(found.bias)]);
  /** @type {Pair} */
  const edited = [change(a), change(b)];
  if (edited.some(Boolean)) lines.push(["the edits", edited]);
  return lines;
}

/**
 * Rows of which each class reads its own evidence.
 * @param {Case} one
 * @param {number} a
 * @param {number} b
 */
function ownEvidence(one, a, b) {
  /** @type {Map<number, Pair>} */
  const rows = new Map();
  for (const [side, c] of [a, b].entries())
    for (const { j, value } of ledger(one, c).all) {
      const pair = rows.get(j) ?? [0, 0];
      pair[side] = factorOf(c, j) * value;
      rows.set(j, pair);
    }
  const sorted = [...rows].sort((p, q) => Math.abs(differenceOf(q[1])) - Math.abs(differenceOf(p[1])));
  const rest = sorted.slice(CONTRASTED);
  /** @type {Line[]} */
  const lines = sorted.slice(0, CONTRASTED).map(([j, pair]) => [fullTitleOf(j), pair, undefined, j]);
  if (rest.length)
    lines.push([`${rest.length} more prototypes`, rest.reduce(([x, y], [, [p, q]]) => [x + p, y + q], [0, 0])]);
  const [first, second] = [a, b].map((c) => unplacedOf(one, c, state.edits));
  if (first !== null && second !== null) lines.push(["no place", [first, second]]);
  if (data.pooling === "sum")
    lines.push(["residual", [residualOf(one, a), residualOf(one, b)]], ["bias", [bias[a], bias[b]]]);
  return lines;
}

/** @param {Pair} pair */
const differenceOf = ([x, y]) => x - y;

/**
 * What two logits are made of, on the same amounts where these are known.
 * @param {Case} one
 * @param {number} a
 * @param {number} b
 */
const linesBetween = (one, a, b) => sameAmounts(one, a, b) ?? ownEvidence(one, a, b);

/**
 * @param {number} difference
 * @param {number} top  the largest one beside it
 */
const differenceBar = (difference, top) => bar(0, difference, [-top, top], difference < 0 ? "#0072B2" : "#D55E00");

/**
 * @param {Case} one
 * @param {number} a
 * @param {number} b
 */
function drawContrast(one, a, b) {
  const node = byId("contrast");
  if (a === b) {
    node.replaceChildren();
    return;
  }
  const lines = linesBetween(one, a, b), same = lines.some(([, , amount]) => amount !== undefined);
  const logits = logitsOf(one, state.edits), off = logits[a] - logits[b];
  const top = Math.max(...lines.map(([, pair]) => Math.abs(differenceOf(pair)))) || 1;
  const row = (/** @type {Line} */ [name, pair, amount, j], total = false) => {
    const difference = differenceOf(pair);
    return el("tr", { class: total ? "total" : null, "data-light": j },
      el("th", { scope: "row" }, name), same ? el("td", {}, amount ?? "") : null,
      el("td", {}, plain(pair[0])), el("td", {}, plain(pair[1])), el("td", {}, signed(difference)),
      el("td", { class: "bar" }, total ? null : differenceBar(difference, top)));
  };
  const head = (/** @type {Child} */ words, /** @type {string | null} */ kind = null) =>
    el("th", { scope: "col", class: kind }, words);
  const both = data.multiLabel; // of labels, which may both be said
  node.replaceChildren(fold("contrast",
    both ? `${nameOf(a)} compared with ${nameOf(b)}` : `Why ${nameOf(a)} and not ${nameOf(b)}?`,
    el("p", { class: "soft" }, "Its ", word("logit"),
      ` is ${plain(Math.abs(off))} ${off >= 0 ? "higher" : "lower"}; this is where that comes from.`,
      same ? " Amounts are those of the prototypes of both classes, read together; above, of one class alone." : ""),
    scrolled("Rows of both classes",
      el("table", { class: "contrast" },
        el("thead", {}, el("tr", {}, head(""), same ? head(word("amount")) : null, head(nameOf(a)), head(nameOf(b)),
          head("difference"), head("", "bar"))),
        el("tbody", {}, lines.map((line) => row(line)), row(["logit", [logits[a], logits[b]]], true))))));
}
