// The explanation of one image: which prediction, and what its logit is made of.

/** Prototypes of a ledger before "show all". */
const SHOWN = 5;
/** Classes in the list of predictions. */
const LISTED = 5;
/** The same where more labels are said. */
const MOST_LISTED = 10;

/** @typedef {[name: string, value: number, shade: string, prototype?: number]} Step  of a waterfall */

const caseShown = () => cases[state.image];
const chosenClass = () => state.class ?? caseShown().first ?? caseShown().top;
/**
 * Classes by their logits without edits.
 * @param {Case} one
 */
const ranking = (one) => best(logitsOf(one), data.classes.length);
/**
 * The class that a class is compared with: as chosen, else the true one, the runner-up, or the best with prototypes.
 * @param {number} c
 */
function rivalOf(c) {
  if (state.against !== null && state.against !== c) return state.against;
  const one = caseShown(), order = ranking(one);
  const truth = one.targets.find((each) => each !== c);
  if (truth !== undefined) return truth;
  return order.find((each) => each !== c && ownsSome(each)) ?? order.find((each) => each !== c) ?? c;
}
/**
 * @param {number} c
 * @param {number} j
 */
const factorOf = (c, j) => state.edits.get(key(c, j)) ?? 1;

function showExplanation() {
  const view = byId("view-explain");
  view.classList.toggle("one", cases.length === 1);
  if (!view.querySelector(".main"))
    view.replaceChildren(cases.length > 1 ? imageList() : "", el("div", { class: "main" }));
  markImage();
  showCase();
}

function showCase() {
  const one = caseShown(), c = chosenClass();
  const rows = ledger(one, c, whole ? Infinity : SHOWN);
  lightables.length = 0;
  document.querySelector("#view-explain .main")?.replaceChildren(
    el("section", { class: "card live", "aria-label": "Prediction" }, el("div", { id: "live" })),
    el("section", { class: "card", "aria-label": "The explanation" }, choices(one, c),
      el("div", { class: "verdict" },
        el("div", { class: "seen" }, seenBy(one, c, rows.kept)),
        el("div", {},
          el("h2", { id: "why" }), el("div", { id: "headline" }),
          el("h3", {}, el("span", { id: "what" })), el("div", { class: "waterfall", id: "waterfall" }),
          el("p", { class: "note", id: "share" }), againstOwnWords(c), el("div", { id: "how" })))),
    besideCard(one, c) ?? "",
    interveneCard(one, c),
    ...partCards(one, c, rows),
    residualCard(one, c) ?? "",
    el("section", { class: "card", "aria-label": "Contrast" }, el("div", { id: "contrast" })),
    similarCard(one) ?? "", placeCard(one) ?? "");
  update();
}

/**
 * Which classes, maps and images are looked at; on a phone behind a word.
 * @param {Case} one
 * @param {number} c
 */
function choices(one, c) {
  const classes = [classChoice("explain", "class", c), classChoice("against", "against", rivalOf(c))];
  const all = [...classes, mapChoice(one.drawn[c]), besideChoice()], name = "More";
  if (!narrow.matches) return el("div", { class: "choices" }, all, steps());
  return el("div", { class: "choices" }, steps(), fold("choices", name, el("div", { class: "choices" }, all)));
}

/**
 * A class that some of its own prototypes speak against.
 * @param {number} c
 */
function againstOwnWords(c) {
  const own = data.own[c] ?? [], found = own.filter(speaksAgainstOwn);
  return found.length ? el("p", { class: "notice", id: "against-own" },
    `${found.length} of the ${own.length} prototypes of ${nameOf(c)} ${found.length === 1 ? "has" : "have"} a negative `,
    word("weight"),
    " for it: the more of them an image holds, the less it goes to this class.") : null;
}

/**
 * What the network saw, and where the class's own prototypes are in it.
 * @param {Case} one
 * @param {number} c
 * @param {Row[]} rows
 */
function seenBy(one, c, rows) {
  /** @type {NonNullable<Shot["all"]>} */
  const all = { maps: [], shades: [], fulls: [] };
  for (const { j } of rows) {
    const prototype = data.prototypes[j], presence = one.drawn[c]?.parts[j]?.presence;
    if (prototype.c !== c || prototype.m || !presence) continue;
    all.maps.push(presence);
    all.shades.push(colourOf(c, j));
    all.fulls.push(prototype.full);
  }
  const picture = one.pictures[0], alt = `all own prototypes of ${nameOf(c)} in the image`;
  return [
    lightable(one, c, {
      big: true, picture, alt: `what the network saw of ${one.image}`, caption: fileOf(one.image),
    }),
    all.maps.length < 2 ? null
      : figure({ big: true, picture, alt, all, caption: "its own prototypes" }),
  ];
}

/**
 * @param {string} words
 * @param {"class" | "against"} field
 * @param {number} chosen
 */
function classChoice(words, field, chosen) {
  const one = caseShown(), logits = logitsOf(one);
  const known = ranking(one).filter((c) => c in one.drawn || hasRows(c) || c === chosen);
  const change = (/** @type {any} */ event) => go({ [field]: Number(event.target.value) });
  return el("label", {}, words, el("select", { id: `choose-${field}`, onchange: change }, known.map((c) =>
    el("option", { value: c, selected: c === chosen }, `${nameOf(c)} (${plain(logits[c])})`))));
}

/** @param {Drawn | undefined} drawn */
function mapChoice(drawn) {
  if (!drawn || !Object.values(drawn.parts).some((part) => part.presence)) return null;
  const presence = data.pooling === "max" ? "activation" : "where it is";
  const kinds = { presence, contribution: "what each place adds" };
  return el("span", { class: "choices" },
    el("span", {}, word("map"), " ",
      el("select", { id: "map", "aria-label": "map", onchange: (event) => { mapKind = event.target.value; show(); } },
        Object.entries(kinds).map(([value, words]) => el("option", { value, selected: value === mapKind }, words)))),
    el("label", {}, el("input", {
      type: "checkbox", id: "smooth", checked: smooth, onchange: (event) => { smooth = event.target.checked; show(); },
    }), "smooth"));
}

/** To the images before and after. */
function steps() {
  if (cases.length < 2) return null;
  const to = (/** @type {number} */ image) => ({
    disabled: image < 0 || image >= cases.length, onclick: () => go({ ...FRESH, image }),
  });
  return el("span", {},
    el("button", { type: "button", id: "previous", ...to(state.image - 1) }, "← previous"), " ",
    el("button", { type: "button", id: "next", ...to(state.image + 1) }, "next →"));
}

/** Everything that depends on the edits. */
function update() {
  const one = caseShown(), c = chosenClass(), before = logitsOf(one), after = logitsOf(one, state.edits);
  drawPrediction(one, before, after);
  drawHeadline(one, c, after);
  drawWaterfall(one, c, after[c]);
  byId("how").replaceChildren(howToRead(one, c, after[c]) ?? "");
  drawContrast(one, c, rivalOf(c));
  drawTwins(one, c);
  drawHint(one, before);
  drawEdits();
  for (const node of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("[data-now]"))) {
    const [edited, j] = /** @type {string} */ (node.dataset.now).split(".").map(Number);
    const e = linkOf(edited, j), factor = factorOf(edited, j);
    node.textContent = e === null || factor === 1 ? "" : `  → ${signed(factor * contribution(one, edited, e))}`;
  }
}

/**
 * @param {Case} one
 * @param {Float64Array} before
 * @param {Float64Array} after
 */
function drawPrediction({ targets, unlike }, before, after) {
  const old = probabilities(before), now = probabilities(after), told = saidBy(after), earlier = saidBy(before);
  const rows = best(after, Math.max(LISTED, Math.min(told.length, MOST_LISTED))).flatMap((c) => [
    el("span", { title: nameOf(c) }, told.includes(c) ? el("b", {}, nameOf(c)) : nameOf(c)),
    bar(0, now[c], [0, 1], "var(--accent)", old[c]),
    el("span", { class: "number", "data-probability": c, "data-value": now[c] }, percent(now[c])),
    el("span", { class: "number soft", "data-logit": c, "data-value": after[c], title: "logit" }, plain(after[c])),
  ]);
  rows.unshift(el("span", {}), el("span", {}), ...["probability", "logit"].map((name) =>
    el("small", { class: "number" }, word(name, name === "logit" ? name : data.multiLabel ? "prob." : "share"))));
  const flipped = differ(told, earlier) ? el("span", { class: "flipped" }, flippedWords(earlier, told)) : null;
  const verdict = truthChip(targets, told);
  byId("live").replaceChildren(el("div", { class: "bars", id: "bars" }, rows),
    el("p", { class: "chips", style: "margin-top:.35rem", "aria-live": "polite" }, flipped, verdict),
    unlike && !flipped ? el("p", { class: "note", id: "unlike" }, word("unlike"), `: ${unlike}`) : "");
}

/**
 * How an answer changed, in words.
 * @param {number[]} before
 * @param {number[]} after
 */
function flippedWords(before, after) {
  if (!data.multiLabel) return `flipped from ${namesOf(before)}`;
  return inWords([["no longer", beyond(before, after)], ["now also", beyond(after, before)]]);
}

/**
 * What a logit is the sum of.
 * @param {Case} one
 * @param {number} c
 */
function stepsOf(one, c) {
  const { kept, rest } = ledger(one, c, whole ? Infinity : SHOWN);
  const value = (/** @type {Row} */ row) => factorOf(c, row.j) * row.value;
  const grey = "var(--grey-bar)", unplaced = unplacedOf(one, c, state.edits), residual = residualOf(one, c);
  /** @type {Step[]} */
  const found = [];
  if (data.pooling === "sum") found.push(["bias", bias[c], grey]);
  for (const row of kept) found.push([titleOf(row.j, c), value(row), colourOf(c, row.j), row.j]);
  if (rest.length) found.push([`${rest.length} more`, rest.reduce((sum, row) => sum + value(row), 0), grey]);
  if (unplaced !== null) found.push(["no place", unplaced, grey]);
  if (data.pooling === "sum" && (!links.share || !hasRows(c) || residual))
    found.push(["residual", residual, "var(--dark-bar)"]);
  return found;
}

/**
 * @param {Case} one
 * @param {number} c
 * @param {number} logit
 */
function drawWaterfall(one, c, logit) {
  const found = stepsOf(one, c), levels = [0];
  for (const [, value] of found) levels.push(levels[levels.length - 1] + value);
  const reach = [Math.min(...levels), Math.max(...levels)];
  if (reach[0] === reach[1]) reach[1] += 1;
  const rows = found.flatMap(([name, value, shade, j], n) => {
    const factor = j === undefined ? 1 : factorOf(c, j), drawn = bar(levels[n], levels[n + 1], reach, shade);
    if (j !== undefined) drawn.dataset.light = String(j);
    return [
      el("span", { title: name, "data-light": j },
        swatch(shade), j === undefined ? word(name) : rowButton(one, c, j, name),
        factor === 1 ? "" : el("span", { class: "flipped" }, `\u00a0× ${factor}`)),
      drawn,
      el("span", { class: "number", "data-light": j }, signed(value)),
    ];
  });
  byId("waterfall").replaceChildren(...rows,
    el("span", { class: "total" }, "= ", word("logit")),
    el("span", { class: "total" }, bar(0, logit, reach, "var(--ink)")),
    el("span", { class: "number total", id: "logit", "data-value": logit }, plain(logit)));
  byId("what").textContent = `What the logit of ${nameOf(c)} is made of`;
  byId("share").replaceChildren(...flat([shareIn(one, c), errorIn(one, c)]));
}

/**
 * The name of a row: its map lights up in the picture, and a click enlarges that.
 * @param {Case} one
 * @param {number} c
 * @param {number} j
 * @param {string} name
 */
function rowButton(one, c, j, name) {
  const picture = one.pictures[data.prototypes[j].m], drawn = rowDrawn(one, c, j);
  const shot = { picture, alt: `${name} in the image`, ...(drawn && { ...drawn, seen: undefined }) };
  return el("button", { type: "button", class: "row", onclick: () => enlarge(shot) }, name);
}

/**
 * How much of a logit the prototypes carry, in words.
 * @param {Case} one
 * @param {number} c
 * @returns {Children}
 */
function shareIn(one, c) {
  if (data.pooling !== "sum") return [data.evidence];
  if (links.share && hasRows(c) && !residualOf(one, c))
    return ["augmented prototypes: each carries its share of the ", word("residual")];
  const share = one.drawn[c]?.share ?? null;
  return share === null ? []
    : [word("residual share"),
      ` ${percent(share, 0)}: what the prototypes do not carry of how far the logit is above the mean class`];
}

/**
 * What the rows and the network's own logit differ by, as it was measured when the page was made.
 * @param {Case} one
 * @param {number} c
 * @returns {Children}
 */
function errorIn(one, c) {
  const error = one.drawn[c]?.error;
  return error === undefined || data.pooling !== "sum" ? []
    : [". ", word("ledger error"), ` ${error ? error.toExponential(0).replace("-", "−") : "0"}`];
}
