// Elements of the page, and names in words. Text is only ever set as text.

/**
 * @typedef {string | number | boolean | null | undefined} Value  null, undefined and false: without the attribute
 * @typedef {{ [name: string]: Value | ((event: any) => void) }} Attributes  functions listen to the event "on..."
 * @typedef {Node | string | null | undefined | false | Children} Child
 * @typedef {Child[]} Children
 */

const SVG = "http://www.w3.org/2000/svg";

/** @param {string} id */
const byId = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

/**
 * @template {Element} T
 * @param {T} node
 * @param {Attributes} attributes
 * @param {Children} children
 */
function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (name === "style") /** @type {any} */ (node).style.cssText = value; // attributes may hold none
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...flat(children));
  return node;
}
/**
 * @param {Children} children
 * @returns {(Node | string)[]}
 */
const flat = (children) => children.flatMap((child) =>
  (Array.isArray(child) ? flat(child) : child === null || child === undefined || child === false ? [] : [child]));
/**
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} name
 * @param {Attributes} attributes
 * @param {Children} children
 */
const el = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
/**
 * @template {keyof SVGElementTagNameMap} T
 * @param {T} name
 * @param {Attributes} attributes
 * @param {Children} children
 */
const svg = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

/** Whether the screen is as narrow as a phone's, as page.css has it. */
const narrow = matchMedia("(max-width: 600px)");
/** @type {Map<string, boolean>} what the reader opened or closed */
const folds = new Map();

/**
 * A part that can be closed; on a phone it is closed at first.
 * @param {string} name
 * @param {Child} title
 * @param {Children} children
 */
function fold(name, title, ...children) {
  const node = el("details", { class: "fold", open: folds.get(name) ?? !narrow.matches, "data-fold": name });
  const note = () => { folds.set(name, !node.open); };
  return fill(node, {}, [el("summary", { onclick: note }, el("h2", {}, title)), children]);
}

/**
 * What may be wider than the screen: it scrolls by itself, with the keyboard too.
 * @param {string} name
 * @param {Children} children
 */
const scrolled = (name, ...children) =>
  el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": name }, children);

/** @param {string} shade */
function swatch(shade) {
  const node = el("span", { class: "swatch", "aria-hidden": "true" });
  node.style.background = shade;
  return node;
}

/**
 * A bar between two numbers, on the axis that `reach` spans.
 * @param {number} from
 * @param {number} to
 * @param {number[]} reach
 * @param {string} shade
 * @param {number} [ghost]  drawn behind it: what it was
 */
function bar(from, to, reach, shade, ghost) {
  const place = (/** @type {number} */ a, /** @type {number} */ b) => ({
    x: 100 * (Math.min(a, b) - reach[0]) / (reach[1] - reach[0]),
    width: Math.max(0.25, 100 * Math.abs(b - a) / (reach[1] - reach[0])),
  });
  const zero = place(0, 0).x, grey = "var(--grey-bar)";
  return svg("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("line", { x1: zero, x2: zero, y1: 0, y2: 10, stroke: grey, "vector-effect": "non-scaling-stroke" }),
    ghost === undefined ? null : svg("rect", { ...place(0, ghost), y: 0, height: 10, fill: grey, opacity: 0.45 }),
    svg("rect", { ...place(from, to), y: 1, height: 8, rx: 0.4, fill: shade }));
}

/**
 * What a command is shown in.
 * @param {string} words
 * @param {Children} buttons  beside the one that copies it
 */
function commandBox(words, ...buttons) {
  const code = el("code", {}, words);
  return el("div", { class: "command" }, el("pre", {}, code),
    el("button", { type: "button", onclick: (event) => copyText(event.currentTarget, code) }, "copy"), buttons);
}

/**
 * @param {HTMLElement} button
 * @param {HTMLElement} node
 */
async function copyText(button, node) {
  try {
    await navigator.clipboard.writeText(node.textContent ?? "");
  } catch {
    const range = document.createRange(), selection = getSelection();
    range.selectNodeContents(node);
    selection?.removeAllRanges();
    selection?.addRange(range);
    document.execCommand("copy");
  }
  button.textContent = "copied";
  setTimeout(() => { button.textContent = "copy"; }, 1500);
}

/** @param {string} word  as a shell reads it */
const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);
/**
 * A word that `--class` understands as exactly this class.
 * @param {number} c
 */
const wordOf = (c) => data.words[c] ?? data.classes[c][0];

/** @param {number} c */
const nameOf = (c) => data.classes[c][1];
/**
 * What a prototype was named, in brackets; empty where it was not.
 * @param {number} j
 */
const captionOf = (j) => (data.prototypes[j].caption ? ` (${data.prototypes[j].caption})` : "");
/**
 * With the name of its owner.
 * @param {number} j
 */
const fullTitleOf = (j) => (data.prototypes[j].n
  ? `prototype ${data.prototypes[j].n} of ${nameOf(data.prototypes[j].c)}${captionOf(j)}`
  : `${nameOf(data.prototypes[j].c)} as a whole`);
/**
 * "prototype 2", with its owner where it is not the class itself.
 * @param {number} j
 * @param {number} c
 */
const titleOf = (j, c) => (data.prototypes[j].c === c
  ? `prototype ${data.prototypes[j].n}${captionOf(j)}` : fullTitleOf(j));
/** @param {number} n */
const paletteOf = (n) => data.palette[(n + data.palette.length) % data.palette.length];
/** @type {Map<string, Map<number, string>>} */
const shades = new Map();
/**
 * Colours of the prototypes of a class in an image: own ones by their number, then, the largest first, those that are
 * free; equal ones only where there are more prototypes than colours.
 * @param {number} c
 */
function shadesOf(c) {
  const word = `${state.image}.${c}`, known = shades.get(word);
  if (known) return known;
  const js = ledger(caseShown(), c).all.map(({ j }) => j), own = js.filter((j) => data.prototypes[j].c === c);
  const found = new Map(own.map((j) => [j, paletteOf(data.prototypes[j].n - 1)]));
  const free = data.palette.filter((shade) => ![...found.values()].includes(shade));
  const others = free.length ? free : data.palette;
  js.filter((j) => !found.has(j)).forEach((j, n) => { found.set(j, others[n % others.length]); });
  shades.set(word, found);
  return found;
}
/**
 * @param {number} c
 * @param {number} j
 */
const colourOf = (c, j) => shadesOf(c).get(j) ?? paletteOf(data.prototypes[j].n - 1);
/**
 * @param {string} path
 * @param {number} length
 */
const tail = (path, length) => (path.length <= length ? path : "…" + path.slice(1 - length));
/** @param {string} path */
const fileOf = (path) => path.slice(path.lastIndexOf("/") + 1);
