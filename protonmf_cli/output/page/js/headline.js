// An explanation in a few sentences, made of nothing but its rows; and how to read one of these.

/** Rows that a sentence names at most. */
const NAMED = 3;
/** Share of all that speaks for a class at which no more rows are named. */
const ENOUGH = 0.6;
/** What speaks against a class, relative to what speaks for it, from which it is mentioned. */
const WORTH_SAYING = 0.1;

/** @typedef {{ name: string, value: number, j: number | null }} Item  what adds to a logit, or takes from it */

/**
 * All that the logit of a class is the sum of, under the edits.
 * @param {Case} one
 * @param {number} c
 */
function itemsOf(one, c) {
  /** @type {Item[]} */
  const items = ledger(one, c).all.map(({ e, j, value }) => {
    const part = links.weight[e] * evidence(one, c, e);
    const lacking = data.pooling === "sum" && evidence(one, c, e) < 0 && part * value > 0;
    return { j, name: `${lacking ? "the lack of " : ""}${titleOf(j, c)}`, value: factorOf(c, j) * value };
  });
  if (data.pooling !== "sum") return items;
  items.push({ j: null, name: "the bias", value: bias[c] },
    { j: null, name: "the unexplained residual", value: residualOf(one, c) });
  const unplaced = unplacedOf(one, c, state.edits);
  if (unplaced !== null) items.push({ j: null, name: "what has no place in the picture", value: unplaced });
  return items;
}

/** @param {Item[]} items */
const sumOfItems = (items) => items.reduce((sum, { value }) => sum + value, 0);

/**
 * A square of the picture around a box, twice as large.
 * @param {Box} box
 * @returns {Box}
 */
function around([left, top, right, bottom]) {
  const side = Math.min(1, 2 * Math.max(right - left, bottom - top));
  const start = (/** @type {number} */ middle) => Math.max(0, Math.min(1 - side, middle - side / 2));
  const [x, y] = [start((left + right) / 2), start((top + bottom) / 2)];
  return [x, y, x + side, y + side];
}

/**
 * The name of a row beside its strongest training patch; its map lights up while it is looked at.
 * @param {Item} item
 * @param {string} words  behind it
 */
function mention({ j, name }, words) {
  const patch = j === null ? null : data.prototypes[j].patches?.[0];
  if (j === null || !patch) return el("span", { class: "mention", "data-light": j }, el("b", {}, name), words);
  const shot = patchOf(j, patch, paletteOf(data.prototypes[j].n - 1));
  const small = { ...shot, box: around(patch[1]), map: null, cut: true };
  return el("span", { class: "mention", "data-light": j },
    el("button", { type: "button", class: "thumb", title: shot.title, onclick: () => enlarge(shot) }, stack(small)),
    el("b", {}, name), words);
}

/**
 * @param {Children} parts
 * @returns {Children}
 */
const listed = (parts) =>
  parts.flatMap((part, n) => (n === 0 ? [part] : [n === parts.length - 1 ? " and " : ", ", part]));

/**
 * That the classifier answers a class without prototypes, and another one is looked at for it.
 * @param {Case} one
 * @param {number} c
 * @returns {Children}
 */
const instead = (one, c) => (one.first !== c || ownsSome(one.top) ? []
  : [`The classifier's own answer is ${nameOf(one.top)} (${percent(one.probability)}), a class without prototypes here; `
    + `of those that have some, ${nameOf(c)} is the best.`]);

/**
 * What speaks for a class: the largest rows, and which share of all positive ones they are.
 * @param {Case} one
 * @param {number} c
 * @returns {Children}
 */
function speaksFor(one, c) {
  const items = itemsOf(one, c).filter(({ value }) => value > 0).sort((a, b) => b.value - a.value);
  const whole = sumOfItems(items);
  if (!items.length) return [`Nothing speaks for ${nameOf(c)}.`];
  let count = 1;
  while (count < Math.min(NAMED, items.length) && sumOfItems(items.slice(0, count)) < ENOUGH * whole) count++;
  const named = items.slice(0, count), most = sumOfItems(named) >= whole / 2;
  const few = named.length === 1 ? "the largest is " : "the largest are ";
  return [most ? "Mostly " : `Many small parts: ${few}`,
    listed(named.map((item) => mention(item, ` (${percent(item.value / whole, 0)})`))),
    ` of all that speaks for ${nameOf(c)}.`];
}

/**
 * What speaks against it, where that is not little.
 * @param {Case} one
 * @param {number} c
 * @returns {Children}
 */
function speaksAgainst(one, c) {
  const all = itemsOf(one, c), items = all.filter(({ value }) => value < 0).sort((a, b) => a.value - b.value);
  const below = sumOfItems(items), above = sumOfItems(all.filter(({ value }) => value > 0));
  if (!items.length || -below < WORTH_SAYING * above) return [];
  const [first] = items;
  return ["Against it: ", mention(first, ` (${signed(first.value)})`),
    items.length > 1 ? `, and ${items.length - 1} more: ${signed(below)} in all` : "", `, for it ${signed(above)}.`];
}

/**
 * What sets a class apart from another one, and by how much.
 * @param {Case} one
 * @param {number} a
 * @param {number} b
 * @returns {Children}
 */
function setsApart(one, a, b) {
  if (a === b || data.multiLabel) return [];
  const logits = logitsOf(one, state.edits), gap = logits[a] - logits[b], [more, less] = gap < 0 ? [b, a] : [a, b];
  const lines = linesBetween(one, more, less), row = bestOne(lines.map(([, pair]) => differenceOf(pair)));
  const [title, pair, amount = "", j = null] = lines[row], lacking = amount.startsWith("−") ? "the lack of " : "";
  const name = j === null ? inSentence(title) : lacking + title, difference = signed(differenceOf(pair));
  const said = mention({ name, value: 0, j }, ` (${difference} for ${nameOf(more)} over ${nameOf(less)})`);
  const first = bestOne(logits) === a, wrong = first && one.targets.includes(b);
  const higher = `${plain(Math.abs(gap))} higher`, rival = nameOf(b) + nextWithSome(logits, a, b);
  if (gap < 0)
    return [`It is behind ${nameOf(b)}, whose `, word("logit"), ` is ${higher}, most of all for `, said, "."];
  return [
    wrong ? [`This is wrong: the true class, ${nameOf(b)}, would need a `, word("logit"), ` ${higher} to win`]
      : [`For ${rival} to ${first ? "win instead" : "be ahead of it"}, its `, word("logit"),
        ` would have to be ${higher}`],
    "; what holds it back most is ", said, ".",
  ];
}

/**
 * Whether a label is said, where an image may have several, and by how much.
 * @param {number} c
 * @param {number} logit
 * @returns {Children}
 */
function saysLabel(c, logit) {
  if (!data.multiLabel) return [];
  const far = plain(Math.abs(logit));
  return [logit > 0 ? `${nameOf(c)} is said: its ` : `${nameOf(c)} is not said: its `, word("logit"),
    logit > 0 ? ` is ${far} above 0, which is 50 %; it would have to fall below that.`
      : ` is ${far} below 0, which is 50 %; it would have to rise above that.`];
}

/**
 * Why a class is compared with that is not the next one, in words.
 * @param {Float64Array} logits
 * @param {number} a
 * @param {number} b
 */
function nextWithSome(logits, a, b) {
  const next = best(logits, 2).find((c) => c !== a);
  return state.against === null && b !== next && next !== undefined && !ownsSome(next)
    ? ` (the next class with prototypes; ${nameOf(next)} has none)` : "";
}

/** @param {string} name  of a line that is no prototype */
const inSentence = (name) => (/^\d/.test(name) ? name : `the ${name.replace(/^the /, "")}`);

/**
 * @param {Case} one
 * @param {number} c
 * @param {Float64Array} after  logits under the edits
 */
function drawHeadline(one, c, after) {
  const told = saidBy(after), edited = state.edits.size ? "With the edits: " : "";
  byId("why").textContent = told.includes(c) ? `Why ${nameOf(c)}?` : `What speaks for ${nameOf(c)}?`;
  const all = [instead(one, c), speaksFor(one, c), speaksAgainst(one, c), setsApart(one, c, rivalOf(c)),
    saysLabel(c, after[c])];
  const sentences = all.filter((each) => each.length);
  byId("headline").replaceChildren(...sentences.map((words, n) => el("p", {}, n ? "" : edited, words)));
}

/**
 * The largest row of an explanation, said number by number.
 * @param {Case} one
 * @param {number} c
 * @param {number} logit  under the edits
 */
function howToRead(one, c, logit) {
  const edited = (/** @type {Row} */ row) => factorOf(c, row.j) * row.value, { all } = ledger(one, c);
  const row = all[bestOne(all.map((each) => Math.abs(edited(each))))];
  if (!row) return null;
  const { e, j, value } = row, name = titleOf(j, c), amount = evidence(one, c, e), weight = links.weight[e];
  const shared = value - weight * amount, digits = links.amounts ? 2 : 3, factor = factorOf(c, j);
  return fold("how", "How to read a row",
    el("p", {}, "A row of the table above, the largest: ", el("b", {}, name), ` adds ${signed(edited(row))}, its `,
      word("contribution"), ". That is"),
    el("ul", {},
      el("li", {}, el("b", {}, plain(amount)), ", ", amountWords(j, amount)),
      el("li", {}, "times ", el("b", {}, signed(weight, digits)), ", its ", word("weight"),
        `: what 1 of it adds to the score of ${nameOf(c)}, its `, word("logit"),
        weight < 0 ? "; below zero, so it speaks against the class" : ""),
      Math.abs(shared) > 5e-3
        ? el("li", {}, "and ", el("b", {}, signed(shared)), ", its share of the ", word("residual")) : null,
      factor === 1 ? null : el("li", {}, "times ", el("b", {}, plain(factor)), ", as it was edited")),
    el("p", {}, `All rows together make the logit, ${plain(logit)}`, data.pooling === "sum"
      ? [", with the ", word("bias"), " and the ", word("residual"), " as they are"] : "",
    data.multiLabel ? ". A label is said where its logit is above 0." : ". The class with the largest logit wins."));
}

/**
 * @param {number} j
 * @param {number} amount
 * @returns {Children}
 */
function amountWords(j, amount) {
  const { usual, c } = data.prototypes[j];
  const held = { sum: "how much of it the image holds", max: "how like it the most similar patch of the image is",
    soft: "which share of the image it takes" };
  if (!usual || !links.amounts) return ["its ", word(evidenceWord()), `: ${held[data.pooling]}`];
  const [low, high, shown] = [...usual, amount].map((value) => Number(value.toFixed(1))); // as they are said
  const where = shown < low ? "less than" : shown > high ? "more than" : "as much as";
  return ["its ", word("amount"), `: how much of it the image holds, ${where} is `, word("usual"),
    ` in training images of ${nameOf(c)} (${plain(low, 1)} to ${plain(high, 1)})`];
}

/** What evidence is called. */
const evidenceWord = () =>
  ({ sum: links.amounts ? "amount" : "evidence", max: "similarity", soft: "match" })[data.pooling];
