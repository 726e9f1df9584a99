// All classes with their prototypes: searched, sorted, and some at a time.

/** Classes on one page. */
const PER_PAGE = 12;
/** Prototypes of one class before "show all". */
const CROWD = 12;

/** @type {(value: number | null, sign: number) => number} */
const unknownLast = (value, sign) => (value === null ? Infinity : sign * value);
/** @type {Record<string, { words: string, rank: ((fact: Fact) => number) | null }>} */
const SORTS = {
  name: { words: "name", rank: null },
  index: { words: "index", rank: (fact) => fact.c },
  residual: { words: "residual share, highest first", rank: (fact) => unknownLast(fact.residual, -1) },
  accuracy: { words: "accuracy, lowest first", rank: (fact) => unknownLast(fact.accuracy, 1) },
  stability: { words: "stability, lowest first", rank: (fact) => unknownLast(fact.stability, 1) },
};

function chosenFacts() {
  const words = state.query.trim().toLowerCase(), { rank } = SORTS[state.sort];
  const fits = (/** @type {Fact} */ { c }) =>
    !words || data.classes[c].some((name) => name.toLowerCase().includes(words)) || String(c) === words;
  /** @type {(a: Fact, b: Fact) => number} */
  const byName = (a, b) => nameOf(a.c).localeCompare(nameOf(b.c), undefined, { numeric: true }) || a.c - b.c;
  return data.facts.filter(fits)
    .sort((a, b) => (rank ? rank(a) - rank(b) || byName(a, b) : byName(a, b)));
}

function showGallery() {
  const view = byId("view-gallery");
  if (!view.firstChild) view.append(galleryTools(), data.audit ? "" : auditHint(), el("div", { id: "shelf" }));
  /** @type {HTMLInputElement} */ (byId("query")).value = state.query;
  /** @type {HTMLSelectElement} */ (byId("sort")).value = state.sort;
  drawShelf();
}

function galleryTools() {
  const change = (/** @type {Partial<State>} */ what) => {
    state = { ...state, page: 0, open: null, at: null, ...what };
    drawShelf();
    writeAddress();
  };
  const search = el("input", {
    type: "search", id: "query", placeholder: "Search classes  ( / )", "aria-label": "Search classes",
    oninput: (event) => change({ query: event.target.value }),
  });
  const sort = el("select", { id: "sort", onchange: (event) => change({ sort: event.target.value }) },
    Object.entries(SORTS).map(([value, { words }]) => el("option", { value }, words)));
  return el("div", { class: "tools" }, search, el("label", {}, "sort by", sort),
    el("span", { class: "count", id: "count", "aria-live": "polite" }));
}

/** What finds the prototypes that a classifier should not rely on, where it was not run. */
const auditHint = () => el("p", { class: "note", id: "audit-hint" }, "Which prototypes look like shortcuts: ",
  el("code", {}, `protonmf audit --model ${quoted(data.file)} --data DIR`), " tries each of them.");

function drawShelf() {
  const found = chosenFacts(), pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
  const place = found.findIndex((fact) => fact.c === state.open);
  if (place >= 0) state.page = Math.floor(place / PER_PAGE);
  state.page = Math.min(state.page, pages - 1);
  const here = found.slice(state.page * PER_PAGE, (state.page + 1) * PER_PAGE);
  const turn = (/** @type {number} */ page) => {
    state = { ...state, page, open: null, at: null };
    drawShelf();
    writeAddress();
    scrollTo(0, 0);
  };
  const none = data.facts.length ? "No class fits." : "This model has no prototypes.";
  byId("count").textContent = `${found.length} of ${data.facts.length} classes`;
  hideWord();
  byId("shelf").replaceChildren(
    (!state.query && !state.page && planeCard()) || "",
    ...here.map(classCard),
    here.length ? "" : el("p", { class: "card" }, none),
    pages > 1 ? pager(state.page, pages, turn) : "");
  if (state.open !== null) document.getElementById(`class-${state.open}`)?.scrollIntoView();
  if (state.at !== null) bringPrototype(state.at);
}

/**
 * Scroll to a prototype of the class that is open, and put the focus there.
 * @param {number} j
 */
function bringPrototype(j) {
  /** @type {() => HTMLElement | null} */
  const find = () => document.querySelector(`#shelf .prototype[data-prototype="${j}"]`);
  /** @type {HTMLElement | null} */
  const more = document.querySelector(`#class-${data.prototypes[j].c} .more button`);
  if (!find()) more?.click();
  const found = find();
  found?.classList.add("here");
  found?.scrollIntoView({ block: "center" });
  found?.querySelector("h4")?.focus({ preventScroll: true });
}

/**
 * @param {number} page
 * @param {number} pages
 * @param {(page: number) => void} turn
 */
function pager(page, pages, turn) {
  return el("div", { class: "pager" },
    el("button", { type: "button", disabled: page === 0, onclick: () => turn(page - 1) }, "← previous"),
    el("span", {}, `page ${page + 1} of ${pages}`),
    el("button", { type: "button", disabled: page === pages - 1, onclick: () => turn(page + 1) }, "next →"));
}

/** @param {Fact} fact */
function classCard(fact) {
  const c = fact.c, [label, name] = data.classes[c];
  const own = data.own[c];
  const cards = el("div", { class: "prototypes" }, own.slice(0, CROWD).map(prototypeCard));
  const more = (/** @type {any} */ event) => {
    cards.append(...own.slice(CROWD).map(prototypeCard));
    event.target.remove();
  };
  return el("article", { class: "card class", id: `class-${c}` },
    el("header", {}, el("h2", { style: "margin:0" }, name),
      el("small", {}, `${label === name ? "" : `${label}, `}class ${c}`), chipsOf(fact)),
    againstOwnWords(c),
    cards,
    own.length > CROWD ? el("p", { class: "more" },
      el("button", { type: "button", onclick: more }, `show all ${own.length} prototypes`)) : null);
}

/** @param {Fact} fact */
function chipsOf({ c, accuracy, residual, stability, images }) {
  const predicted = [...cases.keys()].filter((k) => cases[k].said.includes(c));
  return el("span", { class: "chips" },
    accuracy === null ? null : chip(`accuracy ${percent(accuracy, 0)}`, "", `on ${data.measured}`),
    residual === null ? null
      : el("span", { class: "chip", title: "on the training images" },
        word("residual share"), ` ${percent(residual, 0)}`),
    stabilityChip(stability),
    images === null ? null : chip(`${images} training images`),
    predicted.length ? el("a", {
      class: "chip", href: `#explain?image=${predicted[0]}`,
      title: "the images here that are predicted to be this class",
      onclick: (event) => {
        event.preventDefault();
        go({ ...FRESH, view: "explain", image: predicted[0] });
        scrollTo(0, 0);
      },
    }, `${predicted.length} explained`) : null);
}

/** @type {(words: string, kind?: string, title?: string) => HTMLElement} */
const chip = (words, kind = "", title) => el("span", { class: `chip ${kind}`, title }, words);
/** @param {number | null} value */
const stabilityChip = (value) => (value === null ? null
  : el("span", { class: value < data.unstable ? "chip warn" : "chip" }, word("stability"), ` ${value.toFixed(2)}`));
/** @param {number} j */
const againstChip = (j) =>
  chip("negative weight for its own class", "warn", `more of it lowers the logit of ${nameOf(data.prototypes[j].c)}`);

/**
 * @param {number} c
 * @param {string} words
 */
const galleryLink = (c, words) => el("a", {
  href: `#gallery?open=${c}`,
  onclick: (event) => {
    event.preventDefault();
    go({ view: "gallery", open: c, at: null, query: "" });
  },
}, words);

/** @param {number} j */
function prototypeCard(j) {
  const one = data.prototypes[j], shade = paletteOf(one.n - 1), weight = weightOf(one.c, j), found = one.patches ?? [];
  const patches = found.map((patch) => figure(patchOf(j, patch, shade)));
  if (data.pooling === "max" && found.length)
    patches.unshift(figure({ ...patchOf(j, found[0], shade, true), caption: "its patch" }));
  const node = el("section", { class: "prototype", "data-prototype": j },
    el("h4", { tabindex: -1 }, one.n ? `prototype ${one.n}${captionOf(j)}` : "the class as a whole",
      weight === null ? null : el("span", { class: "chip" }, word("weight"), ` ${signed(weight, 3)}`),
      speaksAgainstOwn(j) ? againstChip(j) : null,
      stabilityChip(one.stability), one.network ? chip(one.network) : null, auditChip(j)),
    one.signs.length ? el("ul", { class: "signs" }, one.signs.map(([, words]) => el("li", {}, words))) : null,
    el("div", { class: "pictures" }, patches.length ? patches : el("p", {}, patchless(one))),
    found.length ? el("p", { title: found.map((patch) => patch[4]).join("\n") },
      `from ${tail(found[0][4], 44)}${andMore(found.length - 1)}`) : null,
    one.facts.length ? el("p", {}, one.facts.join(", ")) : null,
    relativesOf(one));
  node.style.borderLeftColor = shade;
  return node;
}

/** @param {number} count */
const andMore = (count) => (count > 0 ? ` and ${count} more` : "");

/**
 * The prototypes nearest to one, and the other classes that count on it.
 * @param {Prototype} one
 */
function relativesOf({ near, users }) {
  const inGallery = new Set(data.facts.map((fact) => fact.c));
  /** @type {(c: number, words: string, n: number) => Child} */
  const item = (c, words, n) => [n ? ", " : null, inGallery.has(c) ? galleryLink(c, words) : words];
  const alike = near.map(([j, cosine], n) => {
    const { c, n: number } = data.prototypes[j];
    return item(c, `${nameOf(c)} ${number} (${plain(cosine)})`, n);
  });
  const counting = users.slice(0, 5).map(([c, weight], n) => item(c, `${nameOf(c)} (${signed(weight)})`, n));
  const words = links.amounts ? "counts at least half as much for " : "used by ";
  return [
    near.length ? el("p", {}, word("nearest"), ": ", alike) : null,
    users.length ? el("p", {}, words, counting, andMore(users.length - 5)) : null,
  ];
}
