// Cards below an explanation: its prototypes beside their training patches, the residual, and the most similar ones.

/** Training patches beside each prototype. */
const PATCHES = 4;
/** Cards of prototypes on a phone before "show all". */
const FEW = 2;

/**
 * @param {Case} one
 * @param {number} c
 * @param {ReturnType<typeof ledger>} rows
 */
function partCards(one, c, { all, kept, rest }) {
  const shown = narrow.matches && !whole ? kept.slice(0, FEW) : kept;
  const cards = shown.map((row) => partCard(one, c, row));
  const heading = data.pooling === "soft" ? "This looks like these" : "This looks like that";
  if (all.length) cards.unshift(el("h2", {}, `${heading}: the `, word("prototype", "prototypes")));
  const more = () => { whole = true; show(); };
  const words = `show all ${all.length} prototypes`;
  if (rest.length || shown.length < kept.length)
    cards.push(el("p", { class: "more" }, el("button", { type: "button", id: "all", onclick: more }, words)));
  return cards;
}

/**
 * @param {Case} one
 * @param {number} c
 * @param {Row} row
 * @returns {HTMLElement}
 */
function partCard(one, c, { e, j }) {
  const prototype = data.prototypes[j], shade = colourOf(c, j), patches = prototype.patches ?? [];
  const lacking = links.amounts && evidence(one, c, e) < 0;
  const kind = data.pooling === "max" ? "its patch: " : lacking ? "less than none of: " : "that: ";
  const that = patches.slice(0, PATCHES).map((patch, n) =>
    figure({ ...patchOf(j, patch, shade), caption: (n ? "" : kind) + fileOf(patch[4]) }));
  const against = speaksAgainstOwn(j) ? againstChip(j) : null;
  const signs = prototype.signs.map(([, words]) => chip(words, "warn"));
  const flags = [suspectChip(j), against, ...signs].filter(Boolean);
  const node = el("article", { class: "card part", "data-prototype": j, "data-light": j },
    el("header", {},
      el("h3", {}, swatch(shade), titleOf(j, c)),
      sumOf(one, c, { e, j }),
      prototype.network ? el("span", { class: "chip" }, prototype.network) : null,
      data.facts.some((fact) => fact.c === prototype.c) ? galleryLink(prototype.c, "in the gallery") : null,
      slider(c, j)),
    flags.length ? el("div", { class: "chips" }, flags) : null,
    el("div", { class: "pictures" }, inImage(one, c, j),
      el("div", { class: "that" }, that.length ? that : el("p", { class: "soft" }, patchless(prototype)))));
  node.style.borderLeftColor = shade;
  return node;
}

/**
 * What a contribution is the product of.
 * @param {Case} one
 * @param {number} c
 * @param {{ e: number, j: number }} row
 */
function sumOf(one, c, { e, j }) {
  const amount = evidence(one, c, e), weight = links.weight[e], value = contribution(one, c, e);
  const [low, high] = data.prototypes[j].usual ?? [0, 0];
  return el("span", { class: "sum number" },
    links.amounts ? `${plain(amount)} × ${signed(weight)} ` : `${signed(weight, 3)} × ${plain(amount)} `,
    el("span", { class: "soft" }, links.amounts
      ? [word("amount"), " (", word("usual"), ` ${plain(low, 1)} to ${plain(high, 1)}) × `, word("weight")]
      : [word("weight"), " × ", word("evidence")]),
    links.share && links.share[e] ? ` ${signed(value - weight * amount)} of the residual` : "",
    " = ", el("b", {}, signed(value)), el("span", { class: "flipped", "data-now": key(c, j) }));
}

/**
 * Where a prototype is in the image.
 * @param {Case} one
 * @param {number} c
 * @param {number} j
 */
function inImage(one, c, j) {
  const row = rowDrawn(one, c, j), drawn = one.drawn[c], picture = one.pictures[data.prototypes[j].m];
  if (!row) {
    const caption = drawn?.parts[j] ? "this image: nothing can be placed"
      : drawn ? "maps are kept of the largest contributions only" : "maps are kept of the explained classes only";
    return figure({ picture, alt: "the image", caption });
  }
  const { seen, ...shot } = row;
  const unplaced = mapKind === "contribution" && Math.abs(seen.unplaced ?? 0) > 5e-3 ? seen.unplaced ?? 0 : 0;
  const caption = unplaced ? `${signed(unplaced)} of it has no place` : "this";
  return figure({ ...shot, picture, alt: `${titleOf(j, c)} in the image`, caption });
}

/**
 * Why there are no training patches.
 * @param {Prototype} prototype
 */
const patchless = ({ patches }) =>
  (patches ? "The file holds no training patches." : "Its training patches were left out.");

/**
 * @param {number} c
 * @param {number} j
 */
function slider(c, j) {
  const name = key(c, j), words = titleOf(j, c), factor = factorOf(c, j);
  const range = el("input", {
    type: "range", min: 0, max: 2, step: 0.05, value: factor, "aria-label": `strength of ${words}`, "data-edit": name,
  });
  const box = el("input", {
    type: "checkbox", "aria-label": `${words} on`, title: "on or off", checked: factor !== 0, "data-switch": name,
  });
  const output = el("output", {});
  const say = (/** @type {number} */ value) => { output.textContent = `× ${Number(value.toFixed(3))}`; };
  const set = (/** @type {number} */ value) => {
    if (value === 1) state.edits.delete(name);
    else state.edits.set(name, value);
    range.value = String(value);
    box.checked = value !== 0;
    say(value);
    update();
    writeAddress();
  };
  range.addEventListener("input", () => set(Number(range.value)));
  box.addEventListener("change", () => set(box.checked ? 1 : 0));
  say(factor);
  return el("span", { class: "edit" }, box, range, output);
}

/**
 * @param {Case} one
 * @param {number} c
 */
function residualCard(one, c) {
  if (data.pooling !== "sum") return null;
  const drawn = one.drawn[c], left = residualOf(one, c), shared = links.share && hasRows(c) && !left;
  const words = shared ? "Augmented prototypes carry the residual: nothing is left outside them."
    : "What the prototypes do not explain. It is part of the logit and cannot be switched off.";
  return el("section", { class: "card part", "aria-label": "Residual" },
    fold("residual", [swatch("var(--dark-bar)"), "Residual", shared ? "" : ` ${signed(left)}`],
      el("p", { class: "soft" }, words),
      el("div", { class: "pictures" }, shared || !drawn ? [] : residualMaps(one.pictures[0], c, drawn))));
}

/** Of the strongest place of all prototypes: what of the residual is drawn at full strength, unless it has more. */
const OF_THE_STRONGEST = 0.2;

/**
 * @param {number} picture
 * @param {number} c
 * @param {Drawn} drawn
 */
function residualMaps(picture, c, { residual, codes, parts }) {
  const maps = Object.entries(parts).map(([j, part]) => contributionMap(c, Number(j), part)).filter((map) => !!map);
  const top = links.amounts ? OF_THE_STRONGEST * Math.max(0, ...maps.map(strongestOf)) : 0;
  return [
    residual && figure({
      picture, map: residual, style: "signed", full: Math.max(top, strongestOf(residual)),
      alt: "what the residual adds at each place",
      caption: `what each place adds, at most ${plain(strongestOf(residual))}: red for the class, blue against it`,
    }),
    codes && figure({
      picture, map: codes, style: "presence", alt: "where the residual shows", caption: "where it shows",
    }),
  ];
}

/**
 * ProtoPNet's local analysis: the most similar prototypes of any class.
 * @param {Case} one
 */
function similarCard(one) {
  if (!one.similar.length) return null;
  return el("section", { class: "card", "aria-label": "Local analysis" }, fold("similar",
    "The most similar prototypes of any class",
    el("p", { class: "soft" },
      "Local analysis: the patch of this image, where it lies, and the training patch that it looks like."),
    one.similar.map(({ j, evidence: similarity, weight, box, map }) => {
      const prototype = data.prototypes[j], shade = paletteOf(prototype.n - 1), name = fullTitleOf(j);
      const picture = one.pictures[prototype.m], own = prototype.patches?.[0];
      const alt = `the patch of the image most like ${name}`, where = `where ${name} lies in the image`;
      return el("div", { style: "margin:.9rem 0" },
        el("p", {}, swatch(shade), el("b", {}, name),
          ` similarity ${plain(similarity, 3)}, weight to ${nameOf(one.top)} ${signed(weight, 3)}`),
        el("div", { class: "pictures" },
          figure({ picture, box, cut: true, alt, caption: "this patch" }),
          figure({ picture, box, map, style: "presence", shade, alt: where, caption: "activation map" }),
          own && figure({ ...patchOf(j, own, shade, true), caption: "looks like that" }),
          own && figure({ ...patchOf(j, own, shade), caption: fileOf(own[4]) })));
    })));
}
