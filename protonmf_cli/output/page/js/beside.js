// A second explained image beside the first: what makes the logit of the same class in each.

/** Rows of each image that are compared. */
const COMPARED = 5;

/** The second image, where one is chosen. */
const besideShown = () => (state.beside === null || state.beside === state.image ? null : state.beside);

/** Which image to look at beside this one. */
function besideChoice() {
  if (cases.length < 2) return null;
  const change = (/** @type {any} */ { target: { value } }) => {
    go({ beside: value === "" ? null : Number(value) });
    document.getElementById("beside")?.scrollIntoView();
  };
  const others = [...cases.keys()].filter((k) => k !== state.image);
  const named = (/** @type {number} */ k) => `${namesOf(cases[k].said) || "no label"}: ${fileOf(cases[k].image)}`;
  return el("label", {}, "compare with", el("select", { id: "choose-beside", onchange: change },
    el("option", { value: "" }, "no other image"),
    others.map((k) => el("option", { value: k, selected: k === besideShown() }, named(k)))));
}

/**
 * @param {Case} one
 * @param {number} c
 */
function besideCard(one, c) {
  const k = besideShown();
  if (k === null) return null;
  const other = cases[k], swapped = { image: k, beside: state.image, class: c };
  return el("section", { class: "card", "aria-label": "Side by side", id: "beside" },
    el("header", { class: "spread" }, el("h2", {}, `Side by side: what makes ${nameOf(c)} in each image`),
      el("span", {},
        el("button", { type: "button", id: "swap", onclick: () => go(swapped) }, "swap"), " ",
        el("button", { type: "button", id: "alone", onclick: () => go({ beside: null }) }, "close"))),
    el("div", { class: "twins" }, [one, other].map((each, n) => twin(each, c, n ? "right" : "left"))),
    scrolled("Rows of both images",
      el("table", { class: "contrast", id: "twins" },
        el("thead", {}, el("tr", {}, ["", "left", "right", "difference", ""].map((name, n) =>
          el("th", { scope: "col", class: n === 4 ? "bar" : null }, name)))),
        el("tbody", { id: "twin-rows" }))));
}

/**
 * One of the two images, its prediction, and that in short.
 * @param {Case} each
 * @param {number} c
 * @param {string} side
 */
function twin(each, c, side) {
  const alt = `what the network saw of ${each.image}, ${side}`, caption = fileOf(each.image);
  return el("div", {}, lightable(each, c, { picture: each.pictures[0], alt, caption, big: true }),
    el("p", {}, el("b", {}, namesOf(each.said) || nameOf(each.top)), ` ${percent(each.probability)} `, truthChip(each.targets, each.said)),
    el("p", { class: "soft" }, speaksFor(each, each.top)));
}

/**
 * Rows of both images, those that are largest in one of them first; others are added up.
 * @param {Case} one
 * @param {Case} other
 * @param {number} c
 */
function twinLines(one, other, c) {
  const pair = [one, other], ledgers = pair.map((each) => ledger(each, c).all);
  const chosen = new Set(ledgers.flatMap((rows) => rows.slice(0, COMPARED).map(({ j }) => j)));
  /** @type {(rows: Row[], fits: (row: Row) => boolean) => number} */
  const sum = (rows, fits) => rows.filter(fits).reduce((all, { j, value }) => all + factorOf(c, j) * value, 0);
  /** @type {(fits: (row: Row) => boolean) => Pair} */
  const both = (fits) => [sum(ledgers[0], fits), sum(ledgers[1], fits)];
  /** @type {Line[]} */
  const lines = [...chosen].map((j) => [titleOf(j, c), both((row) => row.j === j), undefined, j]);
  const more = ledgers[0].length - chosen.size;
  if (more) lines.push([`${more} more`, both(({ j }) => !chosen.has(j))]);
  const [first, second] = pair.map((each) => unplacedOf(each, c, state.edits));
  if (first !== null && second !== null) lines.push(["no place", [first, second]]);
  if (data.pooling === "sum")
    lines.push(["residual", [residualOf(one, c), residualOf(other, c)]], ["bias", [bias[c], bias[c]]]);
  return lines;
}

/**
 * The table of both images, under the edits.
 * @param {Case} one
 * @param {number} c
 */
function drawTwins(one, c) {
  const k = besideShown();
  if (k === null) return;
  const lines = twinLines(one, cases[k], c), logits = [one, cases[k]].map((each) => logitsOf(each, state.edits)[c]);
  const top = Math.max(...lines.map(([, pair]) => Math.abs(differenceOf(pair)))) || 1;
  const row = (/** @type {Line} */ [name, pair, , j], total = false) => el("tr",
    { class: total ? "total" : null, "data-light": j },
    el("th", { scope: "row" }, j === undefined ? null : swatch(colourOf(c, j)), name), el("td", {}, signed(pair[0])),
    el("td", {}, signed(pair[1])), el("td", {}, signed(differenceOf(pair))),
    el("td", { class: "bar" }, total ? null : differenceBar(differenceOf(pair), top)));
  byId("twin-rows").replaceChildren(...lines.map((line) => row(line)), row(["logit", [logits[0], logits[1]]], true));
}
