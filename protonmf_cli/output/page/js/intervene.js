// Edits: which would flip the decision, what they do to the other images, and the command that makes the same ones.

/**
 * @param {Case} one
 * @param {number} c
 */
function interveneCard(one, c) {
  const reset = () => { state.edits = new Map(); show(); };
  const words = "Switch a prototype off or change its strength below: the prediction follows at once. Edits stay when "
    + "you go to another image.";
  return el("section", { class: "card", "aria-label": "Intervene" }, fold("intervene", "What if?",
    ownsSome(c) ? el("p", { class: "soft" }, words) : nothingToEdit(one, c),
    el("p", { id: "hint", class: "soft" }), el("p", { id: "flips", "aria-live": "polite" }),
    el("div", { class: "command", id: "command", hidden: true },
      el("pre", { title: "names are relative: run it where the model file and the images are" },
        el("code", { id: "words" })),
      el("button", { type: "button", id: "copy", onclick: (event) => copyText(event.currentTarget, byId("words")) },
        "copy"),
      el("button", { type: "button", id: "reset", onclick: reset }, "reset"))));
}

/**
 * Of a class without prototypes of its own.
 * @param {Case} one
 * @param {number} c
 */
function nothingToEdit(one, c) {
  const nearest = ranking(one).find(ownsSome);
  const words = data.pooling !== "sum" ? "its logit is always zero"
    : hasRows(c) ? "its rows are parts of other classes, and more of its logit is residual"
      : "all of its logit is residual";
  return el("p", {}, `${nameOf(c)} has no prototypes of its own in this model: ${words}. `,
    hasRows(c) ? "" : "There is nothing to switch off. ",
    nearest === undefined ? "" : el("button", { type: "button", id: "nearest", onclick: () => go({ class: nearest }) },
      `explain ${nameOf(nearest)}, the best class with prototypes`));
}

/**
 * Rows whose prototypes speak for a class, the strongest first; with what an edit of them takes from "no place".
 * @param {Case} one
 * @param {number} c
 */
const helpfulRows = (one, c) => ledger(one, c).all
  .map((row) => ({ ...row, value: row.value + aside(one, c, row.e) }))
  .filter((row) => row.value > 0).sort((a, b) => b.value - a.value);

/**
 * The first rows that together are above a margin, or all of them where no number of them is.
 * @param {Row[]} rows
 * @param {number} margin
 */
function fewest(rows, margin) {
  let sum = 0, count = 0;
  while (count < rows.length && sum <= margin) sum += rows[count++].value;
  return { found: rows.slice(0, count), enough: sum > margin };
}

/**
 * Which single prototype of the predicted class decides, or the fewest of its own evidence that do together.
 * @param {Case} one
 * @param {Float64Array} before
 */
function drawHint(one, before) {
  const [top, second] = best(before, 2);
  if (second === undefined) return;
  const margin = before[top] - before[second], helpful = helpfulRows(one, top);
  const alone = helpful.filter((row) => row.value > margin), { found, enough } = fewest(helpful, margin);
  /** @type {(rows: Row[], word: string) => string} */
  const named = (rows, word) => rows.map((row) => titleOf(row.j, top)).join(word);
  let words = `${nameOf(top)} stays first even without all the prototypes that speak for it.`;
  if (!helpful.length) words = `No prototype speaks for ${nameOf(top)}, so none can be taken from it.`;
  else if (alone.length)
    words = `Switching off ${named(alone.slice(0, 4), " or ")} alone flips the decision from ${nameOf(top)} to `
      + `${nameOf(second)}.`;
  else if (enough)
    words = `No single prototype flips the decision; switching off ${named(found, " and ")} together makes it `
      + `${nameOf(second)}.`;
  if (state.edits.size) words = `Without the edits: ${words}`;
  const attempt = () => tryHint(top, found);
  byId("hint").replaceChildren(words, " ",
    enough ? el("button", { type: "button", id: "try", onclick: attempt }, "try it") : "");
}

/**
 * Switch prototypes of a class off.
 * @param {number} c
 * @param {Row[]} rows
 */
function tryHint(c, rows) {
  whole = whole || rows.length > SHOWN;
  const edits = new Map(rows.map((row) => [key(c, row.j), 0]));
  state = { ...state, class: chosenClass() === c ? state.class : c, edits };
  show();
}

function drawEdits() {
  const edits = state.edits, flips = byId("flips");
  byId("command").hidden = !edits.size;
  byId("words").textContent = command();
  if (!edits.size || cases.length < 2) {
    flips.replaceChildren();
    return;
  }
  const tops = cases.map((one) => bestOne(logitsOf(one, edits)));
  const changed = [...cases.keys()].filter((k) => tops[k] !== cases[k].top);
  const known = [...cases.keys()].filter((k) => cases[k].target !== null);
  const before = known.filter((k) => !isWrong(cases[k])).length;
  const after = known.filter((k) => tops[k] === cases[k].target).length;
  const right = known.length ? `; right before: ${before}, after: ${after} of ${known.length}` : "";
  flips.replaceChildren(
    `With these edits ${changed.length} of the ${cases.length} images here change their class${right}. `,
    ...changed.slice(0, 6).flatMap((k) => {
      const look = () => go({ ...FRESH, image: k });
      return [el("button", { type: "button", onclick: look }, fileOf(cases[k].image)), " "];
    }));
}

/** The command that does the same. */
function command() {
  const words = [
    "protonmf intervene", quoted(data.nameless ? "IMAGE" : caseShown().image), "--model", quoted(data.file),
  ];
  for (const c of editedClasses(state.edits)) {
    words.push("--class", quoted(wordOf(c)));
    for (const [name, factor] of state.edits) {
      const [edited, j] = name.split(".").map(Number), prototype = data.prototypes[j];
      if (edited !== c) continue;
      const number = prototype.c === c ? String(prototype.n) : `${wordOf(prototype.c)}:${prototype.n}`;
      words.push(factor === 0 ? `--zero ${quoted(number)}` : `--scale ${quoted(`${number}=${factor}`)}`);
    }
  }
  if (data.option) words.push(data.option);
  return words.join(" ");
}
