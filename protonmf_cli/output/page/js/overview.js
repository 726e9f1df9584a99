// All prototypes at a glance: filtered, sorted, and some at a time; each leads to its place in the gallery.

/** Prototypes on one page. */
const TILES = 60;

/** @type {Record<string, { words: string, rank: ((j: number) => number) | null }>} */
const ORDERS = {
  class: { words: "class", rank: null },
  often: { words: "strongest most often", rank: (j) => -(often().get(j)?.[0] ?? 0) },
  stable: { words: "stability, lowest first", rank: (j) => unknownLast(data.prototypes[j].stability, 1) },
  weight: { words: "weight, lowest first", rank: (j) => unknownLast(weightOf(data.prototypes[j].c, j), 1) },
};

/** @type {Map<number, [first: number, images: number]> | null} */
let oftenness = null;
/** Of each prototype: in how many images of the page that go to its class it adds the most, and how many go there. */
const often = () => (oftenness ??= countOften());

function countOften() {
  /** @type {Map<number, [first: number, images: number]>} */
  const found = new Map();
  for (const one of cases) {
    const own = data.own[one.top] ?? [], values = new Map(ledger(one, one.top).all.map(({ j, value }) => [j, value]));
    const first = own[bestOne(own.map((j) => values.get(j) ?? -Infinity))];
    for (const j of own) {
      const [count, images] = found.get(j) ?? [0, 0];
      found.set(j, [count + Number(j === first), images + 1]);
    }
  }
  return found;
}

/**
 * Whether more of a prototype lowers the logit of the class that it was found in.
 * @param {number} j
 */
const speaksAgainstOwn = (j) => (weightOf(data.prototypes[j].c, j) ?? 0) < 0;

/**
 * Why to look at a prototype twice, in words.
 * @param {number} j
 */
const doubts = (j) => [
  ...(speaksAgainstOwn(j) ? ["negative weight for its own class"] : []),
  ...(suspectChip(j) ? ["looks like a shortcut"] : []),
  ...data.prototypes[j].signs.map(([, words]) => words),
];

function showOverview() {
  const view = byId("view-prototypes");
  if (!view.firstChild)
    view.append(overviewTools(), el("ul", { id: "tiles", class: "tiles" }), el("div", { id: "tile-pager" }));
  /** @type {HTMLInputElement} */ (byId("find-prototype")).value = state.named;
  /** @type {HTMLSelectElement} */ (byId("order")).value = state.order;
  /** @type {HTMLInputElement} */ (byId("doubtful")).checked = state.doubtful;
  drawTiles();
}

function overviewTools() {
  const change = (/** @type {Partial<State>} */ what) => {
    state = { ...state, leaf: 0, ...what };
    drawTiles();
    writeAddress();
  };
  return el("div", { class: "tools" },
    el("input", {
      type: "search", id: "find-prototype", placeholder: "Search classes  ( / )",
      "aria-label": "Search prototypes by class",
      oninput: (event) => change({ named: event.target.value }),
    }),
    el("label", {}, "sort by",
      el("select", { id: "order", onchange: (event) => change({ order: event.target.value }) },
        Object.entries(ORDERS).map(([value, { words }]) => el("option", { value }, words)))),
    el("label", {}, el("input", {
      type: "checkbox", id: "doubtful", onchange: (event) => change({ doubtful: event.target.checked }),
    }), "with a warning only"),
    el("span", { class: "count", id: "tile-count", "aria-live": "polite" }));
}

function chosenTiles() {
  const words = state.named.trim().toLowerCase(), { rank } = ORDERS[state.order];
  const own = data.facts.map(({ c }) => c)
    .sort((a, b) => nameOf(a).localeCompare(nameOf(b), undefined, { numeric: true }) || a - b)
    .filter((c) => !words || data.classes[c].some((name) => name.toLowerCase().includes(words)))
    .flatMap((c) => data.own[c] ?? []);
  const found = state.doubtful ? own.filter((j) => doubts(j).length) : own;
  return rank ? found.sort((a, b) => rank(a) - rank(b)) : found; // equal ones stay in the order of their classes
}

function drawTiles() {
  const found = chosenTiles(), pages = Math.max(1, Math.ceil(found.length / TILES));
  state.leaf = Math.min(state.leaf, pages - 1);
  const turn = (/** @type {number} */ leaf) => {
    state = { ...state, leaf };
    drawTiles();
    writeAddress();
    scrollTo(0, 0);
  };
  const all = data.facts.reduce((count, { c }) => count + (data.own[c] ?? []).length, 0);
  byId("tile-count").textContent = `${found.length} of ${all} prototypes`;
  byId("tiles").replaceChildren(...found.slice(state.leaf * TILES, (state.leaf + 1) * TILES).map(tile));
  byId("tile-pager").replaceChildren(found.length ? "" : el("p", { class: "card" }, "No prototype fits."),
    pages > 1 ? pager(state.leaf, pages, turn) : "");
}

/** @param {number} j */
function tile(j) {
  const { c, n, stability, facts, patches } = data.prototypes[j], patch = patches?.[0], warned = doubts(j);
  const [count, images] = often().get(j) ?? [0, 0];
  const said = [
    stability === null ? "" : `stability ${stability.toFixed(2)}`,
    images ? `strongest in ${count} of ${images}` : facts[1] ?? "",
  ].filter(Boolean);
  return el("li", {}, el("a", {
    href: `#gallery?open=${c}&at=${j}`, class: "tile", "data-prototype": j,
    onclick: (event) => {
      event.preventDefault();
      go({ view: "gallery", open: c, at: j, query: "" });
    },
  }, patch ? stack({ ...patchOf(j, patch, paletteOf(n - 1)), alt: "" }) : el("span", { class: "blank" }, "no picture"),
  el("strong", {}, nameOf(c)), el("span", {}, `prototype ${n}`), said.map((words) => el("small", {}, words)),
  warned.length ? el("small", { class: "warned", title: warned.join("\n") },
    `⚠︎ ${warned[0]}${andMore(warned.length - 1)}`) : null));
}
