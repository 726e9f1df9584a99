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
    : hasRows(c) ? "its rows are of other classes, and more of its logit is residual"
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
 * Which single prototype of the predicted class, or the label that is looked at, decides, or the fewest that do together.
 * @param {Case} one
 * @param {Float64Array} before
 */
function drawHint(one, before) {
  const several = data.multiLabel, [first, second] = best(before, 2), top = several ? chosenClass() : first;
  if (!several && second === undefined) return;
  const margin = several ? before[top] : before[top] - before[second], helpful = helpfulRows(one, top);
  if (several && margin <= 0) {
    byId("hint").replaceChildren(`${nameOf(top)} is not said, so there is nothing to take from it.`);
    return;
  }
  const { found, enough } = fewest(helpful, margin), alone = helpful.filter((row) => row.value > margin);
  let words = hintWords(top, several ? null : second, helpful.length > 0, alone, enough ? found : null);
  if (state.edits.size) words = `Without the edits: ${words}`;
  byId("hint").replaceChildren(words, " ",
    enough ? el("button", { type: "button", id: "try", onclick: () => tryHint(top, found) }, "try it") : "");
}

/**
 * @param {number} c
 * @param {number | null} other  the class that it would be instead; null: the label would not be said any more
 * @param {boolean} some  whether any prototype speaks for it
 * @param {Row[]} alone  those that decide by themselves
 * @param {Row[] | null} together  the fewest that decide together
 */
function hintWords(c, other, some, alone, together) {
  /** @type {(rows: Row[], word: string) => string} */
  const named = (rows, word) => rows.map((row) => titleOf(row.j, c)).join(word);
  if (!some) return `No prototype speaks for ${nameOf(c)}, so none can be taken from it.`;
  if (alone.length) return `Switching off ${named(alone.slice(0, 4), " or ")} alone ${other === null
    ? `takes ${nameOf(c)} away.` : `flips the decision from ${nameOf(c)} to ${nameOf(other)}.`}`;
  if (together) return other === null
    ? `No single prototype takes ${nameOf(c)} away; switching off ${named(together, " and ")} together does.`
    : `No single prototype flips the decision; switching off ${named(together, " and ")} together makes it `
      + `${nameOf(other)}.`;
  return `${nameOf(c)} ${other === null ? "is said" : "stays first"} even without all the prototypes that speak for it.`;
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
  const told = cases.map((one) => saidBy(logitsOf(one, edits)));
  const changed = [...cases.keys()].filter((k) => differ(told[k], cases[k].said));
  const known = [...cases.keys()].filter((k) => cases[k].targets.length);
  const before = known.filter((k) => !isWrong(cases[k])).length;
  const after = known.filter((k) => !differ(told[k], cases[k].targets)).length;
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
