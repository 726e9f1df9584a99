// Numbers: how they are packed, what logits say by them, and how they are written.

/** @param {string} text  base64 */
function bytes(text) {
  const letters = atob(text), found = new Uint8Array(letters.length);
  for (let n = 0; n < letters.length; n++) found[n] = letters.charCodeAt(n);
  return found;
}
/** @param {string} text */
const floats = (text) => new Float32Array(bytes(text).buffer);
/** @param {string} text */
const doubles = (text) => new Float64Array(bytes(text).buffer);
/** @param {string} text */
const integers = (text) => new Int32Array(bytes(text).buffer);

/**
 * Inverse of a symmetric positive definite matrix (Gauss and Jordan; no pivots are needed).
 * @param {number[][]} matrix
 */
function inverse(matrix) {
  const size = matrix.length;
  const rows = matrix.map((row, n) =>
    Float64Array.from({ length: 2 * size }, (_, m) => (m < size ? row[m] : m - size === n ? 1 : 0)));
  for (let n = 0; n < size; n++) {
    const pivot = rows[n][n];
    rows[n].forEach((value, m) => { rows[n][m] = value / pivot; });
    for (let k = 0; k < size; k++) {
      const factor = rows[k][n];
      if (k !== n && factor) for (let m = n; m < 2 * size; m++) rows[k][m] -= factor * rows[n][m];
    }
  }
  return rows.map((row) => [...row.slice(size)]);
}

/** @param {Float64Array} logits */
function softmax(logits) {
  const top = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const powers = logits.map((value) => Math.exp(value - top));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((value) => value / sum);
}

/**
 * Places of the largest values.
 * @param {Float64Array} values
 * @param {number} count
 */
const best = (values, count) =>
  [...values.keys()].sort((a, b) => values[b] - values[a] || a - b).slice(0, count);
/** @param {Float64Array | number[]} values */
function bestOne(values) {
  let top = 0;
  values.forEach((value, n) => { if (value > values[top]) top = n; });
  return top;
}

/**
 * @param {number} value
 * @param {number} digits
 */
function plain(value, digits = 2) {
  const text = Math.abs(value).toFixed(digits);
  return (value < 0 && Number(text) ? "−" : "") + text; // never −0.00
}
/**
 * @param {number} value
 * @param {number} digits
 */
const signed = (value, digits = 2) => plain(value, digits).replace(/^(?=\d)/, "+");
/**
 * @param {number} value
 * @param {number} digits
 */
const percent = (value, digits = 1) => `${plain(100 * value, digits)}%`;

/** Of each class; where an image may have several labels, of each by itself. @param {Float64Array} logits */
const probabilities = (logits) =>
  (data.multiLabel ? logits.map((value) => 1 / (1 + Math.exp(-value))) : softmax(logits));

/**
 * The class with the largest logit, or all labels above 50 %.
 * @param {Float32Array | Float64Array} logits
 */
const saidBy = (logits) =>
  (data.multiLabel ? [...logits.keys()].filter((c) => logits[c] > 0) : [bestOne(logits)]);

/** @param {number[]} some @param {number[]} others */
const beyond = (some, others) => some.filter((c) => !others.includes(c));
/** @param {number[]} some @param {number[]} others */
const differ = (some, others) => beyond(some, others).length + beyond(others, some).length > 0;
/** @param {number[]} classes */
const namesOf = (classes) => classes.map(nameOf).join(", ");

/**
 * Names behind words, where there are any.
 * @param {[words: string, classes: number[]][]} parts
 */
const inWords = (parts) => parts.filter(([, classes]) => classes.length)
  .map(([words, classes]) => `${words}: ${namesOf(classes)}`).join("; ");

/** Whether the answer to an image is wrong, as far as its classes are known. @param {Case} one */
const isWrong = (one) => one.targets.length > 0 && differ(one.targets, one.said);
/** @param {Case} one */
const isRight = (one) => one.targets.length > 0 && !differ(one.targets, one.said);

/**
 * What is wrong with an answer, in words.
 * @param {number[]} targets  the classes of an image
 * @param {number[]} told
 */
function wrongWords(targets, told) {
  if (!data.multiLabel) return `wrong: it is ${namesOf(targets)}`;
  return inWords([["not found", beyond(targets, told)], ["wrong", beyond(told, targets)]]);
}

/**
 * Whether an answer is right, where that is known.
 * @param {number[]} targets
 * @param {number[]} told
 */
const truthChip = (targets, told) => (!targets.length ? null : differ(targets, told)
  ? chip(wrongWords(targets, told), "warn") : chip("right", "good"));
