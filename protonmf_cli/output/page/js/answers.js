// What logits say: which classes, how probable each is, and whether that is right.

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
  const missing = beyond(targets, told), others = beyond(told, targets);
  return [missing.length ? `not found: ${namesOf(missing)}` : "", others.length ? `wrong: ${namesOf(others)}` : ""]
    .filter((words) => words).join("; ");
}

/**
 * Whether an answer is right, where that is known.
 * @param {number[]} targets
 * @param {number[]} told
 */
const truthChip = (targets, told) => (!targets.length ? null : differ(targets, told)
  ? chip(wrongWords(targets, told), "warn") : chip("right", "good"));
