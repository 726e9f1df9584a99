// What each prototype adds to each logit, and what edits change in that.

/**
 * An explained image; its numbers are decoded when they are needed first.
 * @typedef {Omit<StoredCase, keyof CaseNumbers> & CaseNumbers} Case
 *
 * @typedef {object} CaseNumbers
 * @property {Float64Array} evidence
 * @property {Float64Array | null} beside
 * @property {Float32Array} logits
 * @property {Float32Array | null} unplaced
 * @property {Float32Array | null} reach
 * @property {Float32Array | null} besideReach
 * @property {Map<string, Float64Array>} amounts  of the classes that were looked at
 * @property {number[]} said  classes
 *
 * @typedef {Map<string, number>} Edits  `class.prototype` -> factor
 * @typedef {{ e: number, j: number, value: number }} Row  connection, prototype and contribution
 */

const links = {
  start: integers(data.links.start), prototype: integers(data.links.prototype),
  weight: floats(data.links.weight), share: data.links.share && floats(data.links.share),
  amounts: data.links.cosines !== null,
};
const bias = floats(data.bias);
const mixing = data.links.cosines && mixer(data.links.cosines);
const cases = data.cases.map(opened);

/**
 * For a class the matrix that makes amounts of projections: rows of the inverse of prototypes' ridged cosines.
 * @param {Cosines} cosines
 */
function mixer(cosines) {
  const values = doubles(cosines.value), lengths = doubles(cosines.length);
  /** @type {Map<number, number[][]>} */
  const made = new Map();
  /** @type {Map<number, number>} */
  const cosine = new Map();
  const pair = (/** @type {number} */ j, /** @type {number} */ k) => Math.min(j, k) * lengths.length + Math.max(j, k);
  for (let c = 0; c < data.classes.length; c++) { // values stand in the order in which classes first need them
    const chosen = links.prototype.slice(links.start[c], links.start[c + 1]).sort();
    chosen.forEach((j, n) => chosen.slice(n + 1).forEach((k) => {
      if (!cosine.has(pair(j, k))) cosine.set(pair(j, k), values[cosine.size]);
    }));
  }
  const alike = (/** @type {number} */ j, /** @type {number} */ k) =>
    (j === k ? lengths[j] > 1e-30 ? 1 : 0 : /** @type {number} */ (cosine.get(pair(j, k))));

  function make(/** @type {number} */ c) {
    const chosen = [...links.prototype.slice(links.start[c], links.start[c + 1])];
    const whole = inverse(chosen.map((j) => chosen.map((k) => alike(j, k) + (j === k ? cosines.ridge : 0))));
    return whole.map((row, n) => {
      const carried = row.reduce((sum, value, m) => sum + value * alike(chosen[n], chosen[m]), 0);
      return row.map((value, m) => (carried > 0 ? value / (carried * lengths[chosen[n]] * lengths[chosen[m]]) : 0));
    });
  }

  return (/** @type {number} */ c) => {
    const found = made.get(c) ?? make(c);
    made.set(c, found);
    return found;
  };
}

/**
 * Numbers of the classes that the page has rows of, in the place of each class.
 * @param {string} text
 */
function spread(text) {
  const all = new Float32Array(data.classes.length);
  floats(text).forEach((value, n) => { all[data.listed[n]] = value; });
  return all;
}

/** @param {StoredCase} one */
function opened(one) {
  const kinds = {
    evidence: doubles, beside: doubles, logits: floats, unplaced: spread, reach: floats, besideReach: floats,
  };
  const names = /** @type {(keyof typeof kinds)[]} */ (Object.keys(kinds));
  /** @type {Record<string, Float32Array | Float64Array | null> | null} */
  let numbers = null;
  const decoded = () => Object.fromEntries(names.map((name) => {
    const text = one[name];
    return [name, text ? kinds[name](text) : null];
  }));
  const found = { ...one, amounts: new Map(), said: data.multiLabel ? saidBy(floats(one.logits)) : [one.top] };
  for (const name of names) Object.defineProperty(found, name, { get: () => (numbers ??= decoded())[name] });
  return /** @type {Case} */ (/** @type {unknown} */ (found));
}

/**
 * Evidence of all connections of a class in one image: amounts, mixed from projections, or what is stored.
 * @param {Case} one
 * @param {number} c
 * @param {"evidence" | "beside"} name
 */
function evidences(one, c, name = "evidence") {
  const word = `${name}.${c}`, known = one.amounts.get(word);
  if (known) return known;
  const start = links.start[c], given = /** @type {Float64Array} */ (one[name]), mix = mixing && mixing(c);
  const own = Float64Array.from({ length: links.start[c + 1] - start }, (_, n) => given[links.prototype[start + n]]);
  const made = mix ? own.map((_, n) => mix[n].reduce((sum, value, m) => sum + value * own[m], 0)) : own;
  one.amounts.set(word, made);
  return made;
}
/**
 * @param {Case} one
 * @param {number} c
 * @param {number} e
 */
const evidence = (one, c, e) => evidences(one, c)[e - links.start[c]];

/**
 * Contribution of connection e to class c in one image: weight x evidence, plus its share of the residual.
 * @param {Case} one
 * @param {number} c
 * @param {number} e
 */
function contribution(one, c, e) {
  const shared = links.share && one.reach ? links.share[e] * one.reach[c] : 0;
  return links.weight[e] * evidence(one, c, e) + shared;
}
/**
 * What an edit of connection e takes from "no place" beside its contribution.
 * @param {Case} one
 * @param {number} c
 * @param {number} e
 */
const aside = (one, c, e) => (one.beside ? links.weight[e] * evidences(one, c, "beside")[e - links.start[c]] : 0)
  + (links.share && one.besideReach ? links.share[e] * one.besideReach[c] : 0);

/**
 * Connections of a class, the largest by size first.
 * @param {Case} one
 * @param {number} c
 * @param {number} count  kept apart from the rest
 */
function ledger(one, c, count = Infinity) {
  /** @type {Row[]} */
  const all = [];
  for (let e = links.start[c]; e < links.start[c + 1]; e++)
    all.push({ e, j: links.prototype[e], value: contribution(one, c, e) });
  all.sort((a, b) => Math.abs(b.value) - Math.abs(a.value) || a.e - b.e);
  return { all, kept: all.slice(0, count), rest: all.slice(count) };
}

/**
 * @param {number} c
 * @param {number} j
 */
const key = (c, j) => `${c}.${j}`;
/** @param {Edits} edits */
const editedClasses = (edits) => new Set([...edits.keys()].map((name) => Number(name.split(".")[0])));

/**
 * What the edits change in the logit of a class, in its contributions and in "no place".
 * @param {Case} one
 * @param {number} c
 * @param {Edits} edits
 */
function changes(one, c, edits) {
  let inside = 0, outside = 0;
  for (let e = links.start[c]; e < links.start[c + 1]; e++) {
    const factor = edits.get(key(c, links.prototype[e])) ?? 1;
    if (factor === 1) continue;
    inside += (factor - 1) * contribution(one, c, e);
    outside += (factor - 1) * aside(one, c, e);
  }
  return { inside, outside };
}

/**
 * What the prototypes leave of the logit of a class.
 * @param {Case} one
 * @param {number} c
 */
function residualOf(one, c) {
  let left = one.logits[c] - bias[c] - (one.unplaced ? one.unplaced[c] : 0);
  for (let e = links.start[c]; e < links.start[c + 1]; e++) left -= contribution(one, c, e);
  return Math.abs(left) < 1e-5 * Math.max(1, Math.abs(one.logits[c])) ? 0 : left;
}
/**
 * "no place" of a class under the edits; null where every part has its place.
 * @param {Case} one
 * @param {number} c
 * @param {Edits} edits
 */
const unplacedOf = (one, c, edits) => one.unplaced && one.unplaced[c] + changes(one, c, edits).outside;

/**
 * Logits of all classes under the edits; only edited classes are added up anew.
 * @param {Case} one
 * @param {Edits} edits
 */
function logitsOf(one, edits = new Map()) {
  const logits = Float64Array.from(one.logits);
  for (const c of editedClasses(edits)) {
    const { inside, outside } = changes(one, c, edits);
    logits[c] += inside + outside;
  }
  return logits;
}

/**
 * The connection of a class to a prototype.
 * @param {number} c
 * @param {number} j
 */
function linkOf(c, j) {
  for (let e = links.start[c]; e < links.start[c + 1]; e++) if (links.prototype[e] === j) return e;
  return null;
}
/**
 * @param {number} c
 * @param {number} j
 */
function weightOf(c, j) {
  const e = linkOf(c, j);
  return e === null ? null : links.weight[e];
}
/** @param {number} c */
const hasRows = (c) => links.start[c + 1] > links.start[c];
/** @param {number} c */
const ownsSome = (c) => (data.own[c] ?? []).length > 0;
