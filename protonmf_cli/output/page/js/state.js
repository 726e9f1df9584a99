// What is looked at. It is kept in the address, but for how maps are drawn and which images are listed.

/**
 * @typedef {object} State
 * @property {string} view  explain, audit, prototypes, gallery or summary
 * @property {number} image
 * @property {number | null} class  explained; null: the first of the image
 * @property {number | null} against  compared with; null: see `rivalOf`
 * @property {number | null} beside  image that is looked at beside this one
 * @property {Edits} edits
 * @property {string} query  of the gallery, as are the following
 * @property {string} sort
 * @property {number} page
 * @property {number | null} open  class to scroll to
 * @property {string} find  classes in the table of the audit
 * @property {number} rows  page of this table
 * @property {number | null} at  prototype of the audit or the gallery to scroll to
 * @property {string} named  classes in the overview of all prototypes, as are the following
 * @property {string} order
 * @property {boolean} doubtful  only prototypes with a warning
 * @property {number} leaf  page
 */

const VIEWS = ["explain", "audit", "prototypes", "gallery", "summary"];
/** Of an image that is looked at anew. */
const FRESH = { class: null, against: null };

/** Where there is nothing to see in a view, or none is named. */
const firstView = () => (cases.length ? "explain" : data.audit ? "audit" : "gallery");

/** @returns {State} */
const firstState = () => ({
  view: firstView(), image: cases.length ? goodExample() : 0, class: null, against: null, beside: null,
  edits: new Map(), query: "", sort: "name", page: 0, open: null, find: "", rows: 0, at: null,
  named: "", order: "class", doubtful: false, leaf: 0,
});
let state = firstState();
let smooth = true;
/** @type {"presence" | "contribution"} */
let mapKind = "presence";
/** All rows of the ledger. */
let whole = false;
/** The address as it was written last: other ones are the reader's. */
let written = "";

function readAddress() {
  const [view, words = ""] = location.hash.slice(1).split("?");
  const given = new URLSearchParams(words), next = firstState();
  const number = (/** @type {string} */ name, /** @type {number} */ below) => {
    const value = given.has(name) ? Number(given.get(name)) : NaN;
    return Number.isInteger(value) && value >= 0 && value < below ? value : null;
  };
  if (VIEWS.includes(view)) next.view = view;
  if ((next.view === "explain" && !cases.length) || (next.view === "audit" && !data.audit)) next.view = firstView();
  next.image = number("image", cases.length) ?? next.image;
  next.class = number("class", data.classes.length);
  next.against = number("against", data.classes.length);
  next.beside = number("beside", cases.length);
  next.edits = editsIn(given.get("edit") ?? "");
  next.query = given.get("q") ?? "";
  const sort = given.get("sort") ?? "";
  if (Object.hasOwn(SORTS, sort)) next.sort = sort;
  next.page = number("page", 1e6) ?? 0;
  next.open = number("open", data.classes.length);
  next.find = given.get("find") ?? "";
  next.rows = number("rows", 1e6) ?? 0;
  next.at = number("at", data.prototypes.length);
  next.named = given.get("named") ?? "";
  const order = given.get("order") ?? "";
  if (Object.hasOwn(ORDERS, order)) next.order = order;
  next.doubtful = given.has("doubtful");
  next.leaf = number("leaf", 1e6) ?? 0;
  return next;
}

/**
 * Only what `protonmf intervene` would do.
 * @param {string} words
 */
function editsIn(words) {
  /** @type {Edits} */
  const edits = new Map();
  for (const word of words.split(",")) {
    const found = /^(\d+)\.(\d+)x(-?[\d.]+(?:e-?\d+)?)$/.exec(word);
    if (!found) continue;
    const [c, j, factor] = found.slice(1).map(Number);
    const known = c < data.classes.length && weightOf(c, j) !== null;
    if (known && Math.abs(factor) < 1e6 && factor !== 1) edits.set(key(c, j), factor);
  }
  return edits;
}

function address() {
  const words = new URLSearchParams();
  if (state.view === "explain") {
    words.set("image", String(state.image));
    if (state.class !== null) words.set("class", String(state.class));
    if (state.against !== null) words.set("against", String(state.against));
    if (state.beside !== null) words.set("beside", String(state.beside));
    const edits = [...state.edits].map(([name, factor]) => `${name}x${factor}`);
    if (edits.length) words.set("edit", edits.join(","));
  } else if (state.view === "gallery") {
    if (state.query) words.set("q", state.query);
    if (state.sort !== "name") words.set("sort", state.sort);
    if (state.page) words.set("page", String(state.page));
    if (state.open !== null) words.set("open", String(state.open));
    if (state.at !== null) words.set("at", String(state.at));
  } else if (state.view === "prototypes") {
    if (state.named) words.set("named", state.named);
    if (state.order !== "class") words.set("order", state.order);
    if (state.doubtful) words.set("doubtful", "1");
    if (state.leaf) words.set("leaf", String(state.leaf));
  } else if (state.view === "audit") {
    if (state.find) words.set("find", state.find);
    if (state.rows) words.set("rows", String(state.rows));
    if (state.at !== null) words.set("at", String(state.at));
  }
  const text = words.toString();
  return `#${state.view}${text ? `?${text}` : ""}`;
}

/** Other images and parts of the report are steps that the browser can go back; edits and searches are not. */
function writeAddress(step = false) {
  written = address();
  if (location.hash === written) return;
  if (step && location.hash) history.pushState(null, "", written);
  else history.replaceState(null, "", written);
}

/** @param {Partial<State>} change */
function go(change) {
  const step = (change.view ?? state.view) !== state.view || (change.image ?? state.image) !== state.image;
  state = { ...state, ...change };
  if ("image" in change || "class" in change) whole = false;
  show(step);
}

/** Draw anew, and leave the focus on the control that was used. */
function show(step = false) {
  const used = document.activeElement, name = used?.id ? `#${used.id}` : null;
  draw();
  writeAddress(step);
  if (document.activeElement !== document.body || !used || used === document.body) return;
  const again = /** @type {HTMLButtonElement | null} */ (name && document.querySelector(name));
  (again && !again.disabled ? again : byId("choose-class") ?? byId("main")).focus({ preventScroll: true });
}

function draw() {
  for (const name of VIEWS) byId(`view-${name}`).hidden = name !== state.view;
  for (const link of navigation()) {
    if (link.dataset.view === state.view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (state.view === "explain") showExplanation();
  if (state.view === "audit" && data.audit) showAudit(data.audit);
  if (state.view === "prototypes") showOverview();
  if (state.view === "gallery") showGallery();
}

/** @returns {NodeListOf<HTMLAnchorElement>} */
const navigation = () => document.querySelectorAll("nav a");
