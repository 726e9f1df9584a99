// Pictures, what is drawn on them, and the large view of one.

/**
 * @typedef {object} Shot  a picture with what lies on it
 * @property {number} picture
 * @property {string} alt
 * @property {string} [title]
 * @property {string | null} [caption]
 * @property {boolean} [big]
 * @property {PlaceMap | null} [map]
 * @property {"presence" | "signed"} [style]  of the map
 * @property {number} [strength]  of the map: its largest opacity
 * @property {number | null} [full]  value of the map in full colour; null: its strongest
 * @property {Box | null} [box]
 * @property {string} [shade]  of the box
 * @property {boolean} [cut]  show what is in the box alone
 * @property {number[]} [cells]  places of the map that are outlined
 * @property {{ maps: PlaceMap[], shades: string[], fulls: (number | null)[] }} [all]  many maps in one
 */

/** @param {number} number */
function source(number) {
  const picture = data.pictures[number];
  return picture.endsWith(".jpg") ? picture : `data:image/jpeg;base64,${picture}`;
}

/**
 * A map of one byte per place as numbers.
 * @param {PlaceMap} map
 */
function grid(map) {
  const raw = bytes(map.q);
  return { h: map.h, w: map.w, values: Float32Array.from(raw, (value) => map.lo + (map.hi - map.lo) * value / 255) };
}

/** @param {PlaceMap} map */
const strongestOf = (map) => Math.max(Math.abs(map.lo), Math.abs(map.hi)) || 1;

/**
 * What each place adds to a class: as it is stored, or the amount there times the weight.
 * @param {number} c
 * @param {number} j
 * @param {Part} part
 */
function contributionMap(c, j, { contribution: stored, presence }) {
  if (stored || !presence || !links.amounts) return stored;
  const weight = weightOf(c, j) ?? 0;
  return { ...presence, lo: presence.lo * weight, hi: presence.hi * weight };
}

/**
 * A canvas whose pixels are given by red, green, blue (0 to 255) and opacity (0 to 1).
 * @param {number} width
 * @param {number} height
 * @param {string | null} kind
 * @param {(x: number, y: number) => number[]} colour
 */
function painted(width, height, kind, colour) {
  const canvas = el("canvas", { width, height, class: kind, "aria-hidden": "true" });
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const picture = context.createImageData(width, height);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const [r, g, b, opacity] = colour(x, y);
      picture.data.set([r, g, b, 255 * opacity], 4 * (y * width + x));
    }
  context.putImageData(picture, 0, 0);
  return canvas;
}

/**
 * One pixel per place; the browser enlarges it smoothly, or not where the places themselves are to be seen.
 * @param {PlaceMap} map
 * @param {Shot["style"]} style
 * @param {number} strength
 * @param {number | null} full
 */
function heat(map, style, strength, full) {
  const { h, w, values } = grid(map), top = full ?? strongestOf(map), two = style === "signed";
  const ramp = two ? data.diverging : data.ramp;
  return painted(w, h, smooth ? "" : "raw", (x, y) => {
    const relative = Math.max(-1, Math.min(1, values[y * w + x] / top));
    const place = two ? (relative + 1) / 2 : Math.max(0, relative);
    const opacity = strength * (two ? Math.abs(relative) : Math.min(1, Math.max(0, relative) ** 1.5 * 1.6));
    return [...ramp[Math.round(place * (ramp.length - 1))], opacity];
  });
}

/**
 * Bilinear value of a map at a place in [0, 1]^2.
 * @param {ReturnType<typeof grid>} map
 * @param {number} x
 * @param {number} y
 */
function valueAt(map, x, y) {
  const u = Math.min(map.w - 1, Math.max(0, x * map.w - 0.5)), v = Math.min(map.h - 1, Math.max(0, y * map.h - 0.5));
  const i = Math.floor(u), j = Math.floor(v), p = Math.min(i + 1, map.w - 1), q = Math.min(j + 1, map.h - 1);
  const get = (/** @type {number} */ a, /** @type {number} */ b) => map.values[b * map.w + a];
  const upper = (1 - u + i) * get(i, j) + (u - i) * get(p, j), lower = (1 - u + i) * get(i, q) + (u - i) * get(p, q);
  return (1 - v + j) * upper + (v - j) * lower;
}

/**
 * All prototypes in one picture: each place has the colour of the one that is strongest there.
 * @param {NonNullable<Shot["all"]>} all
 */
function composite({ maps, shades, fulls }) {
  const side = 96, grids = maps.map(grid), tops = maps.map((map, n) => fulls[n] ?? strongestOf(map));
  const colours = shades.map((shade) => [1, 3, 5].map((n) => parseInt(shade.slice(n, n + 2), 16)));
  return painted(side, side, null, (x, y) => {
    const relative = grids.map((one, n) => valueAt(one, (x + 0.5) / side, (y + 0.5) / side) / tops[n]);
    const winner = bestOne(relative);
    return [...colours[winner], 0.72 * Math.min(1, Math.max(0, (relative[winner] - data.floor) / 0.5))];
  });
}

/**
 * @param {Box} box
 * @param {string} shade
 */
function boxed(box, shade) {
  const [left, top, right, bottom] = box.map((value) => 100 * value);
  const rectangle = (/** @type {string} */ ink, /** @type {number} */ width) => svg("rect", {
    x: left, y: top, width: right - left, height: bottom - top, fill: "none", stroke: ink, "stroke-width": width,
    "vector-effect": "non-scaling-stroke",
  });
  return svg("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true" },
    rectangle("#fff", 4), rectangle(shade, 2));
}

/**
 * The outline of some places of a map.
 * @param {PlaceMap} map
 * @param {number[]} cells
 */
function outlined({ w, h }, cells) {
  const chosen = new Set(cells);
  const path = cells.map((cell) => {
    const x = cell % w, y = Math.floor(cell / w);
    return [
      chosen.has(cell - w) ? "" : `M${x} ${y}h1`, chosen.has(cell + w) ? "" : `M${x} ${y + 1}h1`,
      x > 0 && chosen.has(cell - 1) ? "" : `M${x} ${y}v1`, x < w - 1 && chosen.has(cell + 1) ? "" : `M${x + 1} ${y}v1`,
    ].join("");
  }).join("");
  const line = (/** @type {string} */ ink, /** @type {number} */ width) => svg("path", {
    d: path, fill: "none", stroke: ink, "stroke-width": width, "vector-effect": "non-scaling-stroke",
  });
  return svg("svg", { viewBox: `0 0 ${w} ${h}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    line("#fff", 3), line("#000", 1));
}

/** @param {Shot} shot */
function stack(shot) {
  if (shot.cut && shot.box) {
    const [left, top, right, bottom] = shot.box;
    const inner = svg("image", { href: source(shot.picture), width: 1, height: 1, preserveAspectRatio: "none" });
    return el("span", { class: "stack" }, svg("svg", {
      viewBox: `${left} ${top} ${right - left} ${bottom - top}`, role: "img", "aria-label": shot.alt,
      style: "position:static;aspect-ratio:1;display:block",
    }, inner));
  }
  return el("span", { class: "stack" },
    el("img", { src: source(shot.picture), alt: shot.alt, loading: "lazy", decoding: "async" }),
    shot.all ? composite(shot.all) : null,
    shot.map ? heat(shot.map, shot.style, shot.strength ?? 0.62, shot.full ?? null) : null,
    shot.map && shot.cells?.length ? outlined(shot.map, shot.cells) : null,
    shot.box ? boxed(shot.box, shot.shade ?? "#000") : null);
}

/** @param {Shot} shot */
function figure(shot) {
  const title = shot.title ?? shot.alt;
  return el("figure", { class: shot.big ? "shot big" : "shot" },
    el("button", { type: "button", title, onclick: () => enlarge(shot) }, stack(shot)),
    shot.caption ? el("figcaption", {}, shot.caption) : null);
}

/** @type {{ node: HTMLElement, one: Case, c: number }[]} pictures in which the map of a row lights up */
const lightables = [];

/**
 * A picture of an image, in which the map of a row is seen while that row is looked at.
 * @param {Case} one
 * @param {number} c
 * @param {Shot} shot
 */
function lightable(one, c, shot) {
  const node = figure(shot);
  node.dataset.caption = shot.caption ?? "";
  lightables.push({ node, one, c });
  return node;
}

/**
 * How the map of a prototype is drawn on an image; null where none is kept.
 * @param {Case} one
 * @param {number} c
 * @param {number} j
 */
function rowDrawn(one, c, j) {
  const seen = one.drawn[c]?.parts[j], prototype = data.prototypes[j], e = linkOf(c, j);
  if (!seen?.presence || e === null) return null;
  const added = mapKind === "contribution" ? contributionMap(c, j, seen) : undefined;
  const lacking = links.amounts && evidence(one, c, e) < 0; // no box is drawn around what is not there
  const style = /** @type {Shot["style"]} */ ((added && data.pooling === "sum") || lacking ? "signed" : "presence");
  const full = prototype.full === null ? null : prototype.full * (added ? Math.abs(links.weight[e]) : 1);
  const box = lacking ? null : seen.box ?? null;
  return { map: added ?? seen.presence, style, full, box, shade: colourOf(c, j), seen };
}

/**
 * Light the map of a row up in the pictures beside it.
 * @param {string | null} row  number of a prototype; null: of none
 */
function light(row) {
  for (const node of document.querySelectorAll(".lit")) {
    if (node.matches(".stack > *")) node.remove();
    else node.classList.remove("lit");
  }
  if (row !== null) for (const node of document.querySelectorAll(`[data-light="${row}"]`)) node.classList.add("lit");
  const shows = mapKind === "presence" ? "where it is" : "what each place adds";
  for (const { node, one, c } of lightables) {
    const caption = node.querySelector("figcaption"), j = Number(row);
    const drawn = row !== null && data.prototypes[j].m === 0 ? rowDrawn(one, c, j) : null;
    if (caption) caption.textContent = row === null ? node.dataset.caption ?? ""
      : `${titleOf(j, c)}: ${drawn ? shows : "no map is kept here"}`;
    if (!drawn) continue;
    const shown = [heat(drawn.map, drawn.style, 0.72, drawn.full), drawn.box ? boxed(drawn.box, drawn.shade) : null];
    for (const layer of shown) {
      layer?.classList.add("lit");
      node.querySelector(".stack")?.append(layer ?? "");
    }
  }
}

/** Rows light up when the pointer or the focus is on them. */
function watchRows() {
  /** @param {EventTarget | null} target */
  const rowAt = (target) =>
    (target instanceof Element ? target.closest("[data-light]")?.getAttribute("data-light") ?? null : null);
  /** @type {string | null} */
  let now = null;
  const look = (/** @type {string | null} */ row) => {
    if (row !== now) light(now = row);
  };
  document.addEventListener("pointerover", (event) => look(rowAt(event.target) ?? rowAt(document.activeElement)));
  document.addEventListener("focusin", (event) => look(rowAt(event.target)));
  document.addEventListener("focusout", (event) => look(rowAt(event.relatedTarget)));
}

/** @param {Shot} shot */
function enlarge(shot) {
  const dialog = /** @type {HTMLDialogElement} */ (byId("large")), drawn = shot.map || shot.all || shot.box;
  const paint = (/** @type {boolean} */ bare) => {
    const picture = stack(bare ? { ...shot, map: null, all: undefined, box: null, cut: false } : shot);
    const turn = () => paint(!bare);
    dialog.replaceChildren(picture, el("div", { class: "row" },
      el("span", { class: "soft" }, shot.title ?? shot.alt),
      el("span", {},
        drawn ? [el("button", { type: "button", onclick: turn }, bare ? "with the map" : "picture alone"), " "] : null,
        el("button", { type: "button", onclick: () => dialog.close(), autofocus: true }, "close"))));
  };
  paint(false);
  dialog.setAttribute("aria-label", shot.title ?? shot.alt);
  dialog.onclick = (event) => { if (event.target === dialog) dialog.close(); }; // beside it
  if (!dialog.open) dialog.showModal();
}

/**
 * A training patch: where the prototype is in its image, or the patch alone.
 * @param {number} j
 * @param {Patch} patch
 * @param {string} shade
 * @param {boolean} cut
 * @returns {Shot}
 */
function patchOf(j, [picture, box, map, score, path], shade, cut = false) {
  const words = `training patch of ${fullTitleOf(j)} in ${path}`;
  return {
    picture, box: map || cut ? box : null, map: cut ? null : map, cut, shade, style: "presence", strength: 0.45,
    full: data.prototypes[j].full, alt: words, title: `${words}, score ${plain(score, 3)}`,
  };
}
