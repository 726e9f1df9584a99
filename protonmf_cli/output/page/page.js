"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SHOWN = 5;      // prototypes of a ledger before "show all"
  const PATCHES = 4;    // training patches beside each prototype of a ledger
  const PER_PAGE = 12;  // classes of the gallery on one page
  const CROWD = 12;     // prototypes of one class before "show all"
  const LISTED = 5;     // classes in the list of predictions

  // ---------- numbers ----------
  function bytes(text) {
    const letters = atob(text), found = new Uint8Array(letters.length);
    for (let n = 0; n < letters.length; n++) found[n] = letters.charCodeAt(n);
    return found;
  }
  const floats = (text) => new Float32Array(bytes(text).buffer);
  const doubles = (text) => new Float64Array(bytes(text).buffer);
  const integers = (text) => new Int32Array(bytes(text).buffer);
  const links = {
    start: integers(data.links.start), prototype: integers(data.links.prototype),
    weight: floats(data.links.weight), share: data.links.share && floats(data.links.share),
    amounts: data.links.cosines !== null,
  };

  /** For a class the matrix that makes amounts of projections: rows of the inverse of prototypes' ridged cosines. */
  const mixing = (() => {
    if (!links.amounts) return null;
    const { ridge } = data.links.cosines, values = doubles(data.links.cosines.value), lengths = doubles(data.links.cosines.length);
    const made = new Map(), cosine = new Map(), pair = (j, k) => Math.min(j, k) * lengths.length + Math.max(j, k);
    for (let c = 0; c < data.classes.length; c++) { // values stand in the order in which classes first need them
      const chosen = links.prototype.slice(links.start[c], links.start[c + 1]).sort();
      chosen.forEach((j, n) => chosen.slice(n + 1).forEach((k) => cosine.has(pair(j, k)) || cosine.set(pair(j, k), values[cosine.size])));
    }
    return (c) => {
      if (!made.has(c)) {
        const chosen = [...links.prototype.slice(links.start[c], links.start[c + 1])];
        const alike = (j, k) => (j === k ? lengths[j] > 1e-30 ? 1 : 0 : cosine.get(pair(j, k)));
        const whole = inverse(chosen.map((j) => chosen.map((k) => alike(j, k) + (j === k ? ridge : 0))));
        made.set(c, whole.map((row, n) => {
          const carried = row.reduce((sum, value, m) => sum + value * alike(chosen[n], chosen[m]), 0);
          return row.map((value, m) => (carried > 0 ? value / (carried * lengths[chosen[n]] * lengths[chosen[m]]) : 0));
        }));
      }
      return made.get(c);
    };
  })();

  /** Inverse of a symmetric positive definite matrix (Gauss and Jordan; no pivots are needed). */
  function inverse(matrix) {
    const size = matrix.length, rows = matrix.map((row, n) => Float64Array.from({ length: 2 * size }, (_, m) => (m < size ? row[m] : m - size === n ? 1 : 0)));
    for (let n = 0; n < size; n++) {
      const pivot = rows[n][n];
      rows[n].forEach((value, m) => { rows[n][m] = value / pivot; });
      for (let k = 0; k < size; k++) {
        const factor = rows[k][n];
        if (k !== n && factor) for (let m = n; m < 2 * size; m++) rows[k][m] -= factor * rows[n][m];
      }
    }
    return rows.map((row) => [...row.slice(size)]);
  }

  const bias = floats(data.bias);
  /** Numbers of the classes that the page has rows of, in the place of each class. */
  function spread(text) {
    const all = new Float32Array(data.classes.length);
    floats(text).forEach((value, n) => { all[data.listed[n]] = value; });
    return all;
  }
  const cases = data.cases.map((one) => {
    let numbers = null; // decoded when they are needed first
    const kinds = { evidence: doubles, beside: doubles, logits: floats, unplaced: spread, reach: floats, besideReach: floats }, names = Object.keys(kinds);
    const get = (name) => (numbers ??= Object.fromEntries(names.map((each) => [each, one[each] && kinds[each](one[each])])))[name];
    const found = { ...one, amounts: new Map() };
    for (const name of names) Object.defineProperty(found, name, { get: () => get(name) });
    return found;
  });

  /** Evidence of all connections of a class in one image: amounts, mixed from projections, or what is stored. */
  function evidences(one, c, name = "evidence") {
    const start = links.start[c], count = links.start[c + 1] - start, given = one[name], word = `${name}.${c}`;
    if (!one.amounts.has(word)) {
      const own = Float64Array.from({ length: count }, (_, n) => given[links.prototype[start + n]]);
      one.amounts.set(word, !links.amounts ? own : own.map((_, n) => mixing(c)[n].reduce((sum, value, m) => sum + value * own[m], 0)));
    }
    return one.amounts.get(word);
  }
  const evidence = (one, c, e) => evidences(one, c)[e - links.start[c]];

  /** Contribution of connection e to class c in one image: weight x evidence, plus its share of the residual. */
  function contribution(one, c, e) {
    const shared = links.share && one.reach ? links.share[e] * one.reach[c] : 0;
    return links.weight[e] * evidence(one, c, e) + shared;
  }
  /** What an edit of connection e takes from "no place" beside its contribution. */
  const aside = (one, c, e) => (one.beside ? links.weight[e] * evidences(one, c, "beside")[e - links.start[c]] : 0)
    + (links.share && one.besideReach ? links.share[e] * one.besideReach[c] : 0);

  /** What the edits change in the logit of a class, in its contributions and in "no place". */
  function changes(one, c, edits) {
    let inside = 0, outside = 0;
    for (let e = links.start[c]; e < links.start[c + 1]; e++) {
      const factor = edits.get(key(c, links.prototype[e])) ?? 1;
      if (factor === 1) continue;
      inside += (factor - 1) * contribution(one, c, e);
      outside += (factor - 1) * aside(one, c, e);
    }
    return { inside, outside };
  }

  /** What the prototypes leave of the logit of a class. */
  function residualOf(one, c) {
    let left = one.logits[c] - bias[c] - (one.unplaced ? one.unplaced[c] : 0);
    for (let e = links.start[c]; e < links.start[c + 1]; e++) left -= contribution(one, c, e);
    return Math.abs(left) < 1e-5 * Math.max(1, Math.abs(one.logits[c])) ? 0 : left;
  }
  const unplacedOf = (one, c, edits) => one.unplaced[c] + changes(one, c, edits).outside;

  /** Logits of all classes under the edits; only edited classes are added up anew. */
  function logitsOf(k, edits) {
    const logits = Float64Array.from(cases[k].logits);
    for (const c of editedClasses(edits)) {
      const { inside, outside } = changes(cases[k], c, edits);
      logits[c] += inside + outside;
    }
    return logits;
  }

  function softmax(logits) {
    const top = logits.reduce((a, b) => Math.max(a, b), -Infinity);
    const powers = logits.map((value) => Math.exp(value - top));
    const sum = powers.reduce((a, b) => a + b, 0);
    return powers.map((value) => value / sum);
  }

  const best = (values, count) => [...values.keys()].sort((a, b) => values[b] - values[a] || a - b).slice(0, count);
  const bestOne = (values) => values.reduce((top, value, c) => (value > values[top] ? c : top), 0);
  const key = (c, j) => `${c}.${j}`;
  const editedClasses = (edits) => new Set([...edits.keys()].map((name) => Number(name.split(".")[0])));
  const plain = (value, digits = 2) => {
    const text = Math.abs(value).toFixed(digits);
    return (value < 0 && Number(text) ? "−" : "") + text; // never −0.00
  };
  const signed = (value, digits = 2) => plain(value, digits).replace(/^(?=\d)/, "+");
  const percent = (value, digits = 1) => `${plain(100 * value, digits)}%`;

  // ---------- elements: text is only ever set as text ----------
  const SVG = "http://www.w3.org/2000/svg";
  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes ?? {})) {
      if (value === undefined || value === null || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value === true) node.setAttribute(name, "");
      else node.setAttribute(name, value);
    }
    node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
    return node;
  }
  const el = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
  const svg = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);
  const swatch = (shade) => {
    const node = el("span", { class: "swatch", "aria-hidden": "true" });
    node.style.background = shade;
    return node;
  };
  const nameOf = (c) => data.classes[c][1];
  const linkOf = (c, j) => {
    for (let e = links.start[c]; e < links.start[c + 1]; e++) if (links.prototype[e] === j) return e;
    return null;
  };
  const weightOf = (c, j) => (linkOf(c, j) === null ? null : links.weight[linkOf(c, j)]);
  /** What each place adds to a class: as it is stored, or the amount there times the weight. */
  function contributionMap(c, j, { contribution, presence }) {
    if (contribution || !presence || !links.amounts) return contribution;
    const weight = weightOf(c, j);
    return { ...presence, lo: presence.lo * weight, hi: presence.hi * weight };
  }
  const colourOf = (c, j) => data.palette[(linkOf(c, j) - links.start[c]) % data.palette.length];
  /** "prototype 2", with its owner where it is not the class itself. */
  const titleOf = (j, c) => {
    const one = data.prototypes[j];
    return one.c === c ? `prototype ${one.n}` : `prototype ${one.n} of ${nameOf(one.c)}`;
  };
  const tail = (path, length = 30) => (path.length <= length ? path : "…" + path.slice(1 - length));
  const fileOf = (path) => path.split("/").pop();

  // ---------- pictures ----------
  const source = (number) => {
    const picture = data.pictures[number];
    return picture.endsWith(".jpg") ? picture : `data:image/jpeg;base64,${picture}`;
  };

  /** A map of one byte per place as numbers. */
  function grid(map) {
    const raw = bytes(map.q);
    return { h: map.h, w: map.w, values: Float32Array.from(raw, (value) => map.lo + (map.hi - map.lo) * value / 255) };
  }

  const strongestOf = (map) => Math.max(Math.abs(map.lo), Math.abs(map.hi)) || 1;
  const within = (value) => Math.max(-1, Math.min(1, value));

  /** One pixel per place; the browser enlarges it smoothly, or not where the places themselves are to be seen. */
  function heat(map, style, strength, full) {
    const { h, w, values } = grid(map);
    const canvas = el("canvas", { width: w, height: h, class: smooth ? "" : "raw", "aria-hidden": "true" });
    const context = canvas.getContext("2d"), picture = context.createImageData(w, h), top = full ?? strongestOf(map);
    values.forEach((value, n) => {
      const relative = within(value / top), two = style === "signed";
      const ramp = two ? data.diverging : data.ramp;
      const place = two ? (relative + 1) / 2 : Math.max(0, relative);
      const [r, g, b] = ramp[Math.round(place * (ramp.length - 1))];
      const opacity = strength * (two ? Math.abs(relative) : Math.min(1, Math.max(0, relative) ** 1.5 * 1.6));
      picture.data.set([r, g, b, 255 * opacity], 4 * n);
    });
    context.putImageData(picture, 0, 0);
    return canvas;
  }

  /** Bilinear value of a map at a place in [0, 1]^2. */
  function at(map, x, y) {
    const u = Math.min(map.w - 1, Math.max(0, x * map.w - 0.5)), v = Math.min(map.h - 1, Math.max(0, y * map.h - 0.5));
    const i = Math.floor(u), j = Math.floor(v), p = Math.min(i + 1, map.w - 1), q = Math.min(j + 1, map.h - 1);
    const get = (a, b) => map.values[b * map.w + a];
    return (1 - v + j) * ((1 - u + i) * get(i, j) + (u - i) * get(p, j)) + (v - j) * ((1 - u + i) * get(i, q) + (u - i) * get(p, q));
  }

  /** All prototypes in one picture: each place has the colour of the one that is strongest there. */
  function composite(maps, shades, fulls) {
    const side = 96, canvas = el("canvas", { width: side, height: side, "aria-hidden": "true" });
    const context = canvas.getContext("2d"), picture = context.createImageData(side, side);
    const grids = maps.map(grid), tops = maps.map((map, n) => fulls[n] ?? strongestOf(map));
    const colours = shades.map((shade) => [1, 3, 5].map((n) => parseInt(shade.slice(n, n + 2), 16)));
    for (let y = 0; y < side; y++)
      for (let x = 0; x < side; x++) {
        const relative = grids.map((one, n) => at(one, (x + 0.5) / side, (y + 0.5) / side) / tops[n]);
        const winner = bestOne(relative);
        const opacity = 0.72 * Math.min(1, Math.max(0, (relative[winner] - data.floor) / 0.5));
        picture.data.set([...colours[winner], 255 * opacity], 4 * (y * side + x));
      }
    context.putImageData(picture, 0, 0);
    return canvas;
  }

  function boxed(box, shade) {
    const [left, top, right, bottom] = box.map((value) => 100 * value);
    const rectangle = (ink, width) => svg("rect", {
      x: left, y: top, width: right - left, height: bottom - top, fill: "none", stroke: ink, "stroke-width": width,
      "vector-effect": "non-scaling-stroke",
    });
    return svg("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true" }, rectangle("#fff", 4), rectangle(shade, 2));
  }

  /** A picture with what lies on it. */
  function stack(shot) {
    if (shot.cut) {
      const [left, top, right, bottom] = shot.box;
      const inner = svg("image", { href: source(shot.picture), width: 1, height: 1, preserveAspectRatio: "none" });
      return el("span", { class: "stack" }, svg("svg", {
        viewBox: `${left} ${top} ${right - left} ${bottom - top}`, role: "img", "aria-label": shot.alt,
        style: "position:static;aspect-ratio:1;display:block",
      }, inner));
    }
    return el("span", { class: "stack" },
      el("img", { src: source(shot.picture), alt: shot.alt, loading: "lazy", decoding: "async" }),
      shot.all ? composite(shot.all.maps, shot.all.shades, shot.all.fulls) : null,
      shot.map ? heat(shot.map, shot.style, shot.strength ?? 0.62, shot.full ?? null) : null,
      shot.box ? boxed(shot.box, shot.shade ?? "#000") : null);
  }

  function figure(shot) {
    return el("figure", { class: shot.big ? "shot big" : "shot" },
      el("button", { type: "button", title: shot.title ?? shot.alt, onclick: () => enlarge(shot) }, stack(shot)),
      shot.caption ? el("figcaption", {}, shot.caption) : null);
  }

  function enlarge(shot) {
    const dialog = document.getElementById("large");
    const paint = (bare) => {
      const picture = stack(bare ? { ...shot, map: null, all: null, box: null, cut: false } : shot);
      dialog.replaceChildren(picture, el("div", { class: "row" },
        el("span", { class: "soft" }, shot.title ?? shot.alt),
        el("span", {},
          shot.map || shot.all || shot.box ? [el("button", { type: "button", onclick: () => paint(!bare) }, bare ? "with the map" : "picture alone"), " "] : null,
          el("button", { type: "button", onclick: () => dialog.close(), autofocus: true }, "close"))));
    };
    paint(false);
    if (!dialog.open) dialog.showModal();
  }

  function patchOf(j, patch, shade, cut = false) {
    const [picture, box, map, score, path] = patch, one = data.prototypes[j];
    const words = `training patch of prototype ${one.n} of ${nameOf(one.c)} in ${path}`;
    return { picture, box: map || cut ? box : null, map: cut ? null : map, cut, shade, style: "presence", strength: 0.45, full: one.full, alt: words, title: `${words}, score ${plain(score, 3)}` };
  }

  // ---------- what is looked at; kept in the address ----------
  const start = () => ({
    view: cases.length ? "explain" : "gallery", image: 0, class: null, against: null, edits: new Map(),
    query: "", sort: "name", page: 0, suspicious: false, open: null,
  });
  let state = start(), smooth = true, mapKind = "presence", whole = false, filter = "", wrongOnly = false;

  function readAddress() {
    const [view, words = ""] = location.hash.slice(1).split("?");
    const given = new URLSearchParams(words), next = start();
    const number = (name, below) => {
      const value = given.has(name) ? Number(given.get(name)) : NaN;
      return Number.isInteger(value) && value >= 0 && value < below ? value : null;
    };
    if (["explain", "gallery", "summary"].includes(view)) next.view = view;
    if (next.view === "explain" && !cases.length) next.view = "gallery";
    next.image = number("image", cases.length) ?? 0;
    next.class = number("class", data.classes.length);
    next.against = number("against", data.classes.length);
    for (const word of (given.get("edit") ?? "").split(",")) {
      const found = /^(\d+)\.(\d+)x(-?[\d.]+(?:e-?\d+)?)$/.exec(word);
      const [c, j, factor] = found ? found.slice(1).map(Number) : [];
      // only what `protonmf intervene` would do
      if (found && c < data.classes.length && weightOf(c, j) !== null && Math.abs(factor) < 1e6 && factor !== 1) next.edits.set(key(c, j), factor);
    }
    next.query = given.get("q") ?? "";
    next.sort = Object.hasOwn(SORTS, given.get("sort")) ? given.get("sort") : "name";
    next.suspicious = given.get("only") === "suspicious";
    next.page = number("page", 1e6) ?? 0;
    next.open = number("open", data.classes.length);
    return next;
  }

  function address() {
    const words = new URLSearchParams();
    if (state.view === "explain") {
      words.set("image", state.image);
      if (state.class !== null) words.set("class", state.class);
      if (state.against !== null) words.set("against", state.against);
      const edits = [...state.edits].map(([name, factor]) => `${name}x${factor}`);
      if (edits.length) words.set("edit", edits.join(","));
    } else if (state.view === "gallery") {
      if (state.query) words.set("q", state.query);
      if (state.sort !== "name") words.set("sort", state.sort);
      if (state.suspicious) words.set("only", "suspicious");
      if (state.page) words.set("page", state.page);
      if (state.open !== null) words.set("open", state.open);
    }
    const text = words.toString();
    return `#${state.view}${text ? `?${text}` : ""}`;
  }

  let written = null;
  /** Other images and parts of the report are steps that the browser can go back; edits and searches are not. */
  function writeAddress(step = false) {
    written = address();
    if (location.hash === written) return;
    if (step && location.hash) history.pushState(null, "", written);
    else history.replaceState(null, "", written);
  }

  /** Draw anew, and leave the focus on the control that was used. */
  function show(step = false) {
    const used = document.activeElement, name = used?.id ? `#${used.id}` : null;
    draw();
    writeAddress(step);
    if (document.activeElement !== document.body || !used || used === document.body) return;
    const again = name && document.querySelector(name);
    (again && !again.disabled ? again : document.getElementById("choose-class") ?? document.getElementById("main")).focus({ preventScroll: true });
  }

  function draw() {
    for (const name of ["explain", "gallery", "summary"]) document.getElementById(`view-${name}`).hidden = name !== state.view;
    for (const link of document.querySelectorAll("nav a")) {
      if (link.dataset.view === state.view) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    if (state.view === "explain") showExplanation();
    if (state.view === "gallery") showGallery();
  }

  // ---------- explanations ----------
  const chosenClass = () => state.class ?? cases[state.image].first ?? cases[state.image].top;
  const has = (c) => links.start[c + 1] > links.start[c];
  const owns = (c) => (data.own[c] ?? []).length > 0;
  /** The class that a class is compared with: as chosen, else the true one, the runner-up, or the best with prototypes. */
  function rivalOf(c) {
    if (state.against !== null && state.against !== c) return state.against;
    const one = cases[state.image], order = best(logitsOf(state.image, new Map()), data.classes.length);
    if (one.target !== null && one.target !== c) return one.target;
    return order.find((each) => each !== c && owns(each)) ?? order.find((each) => each !== c) ?? c;
  }
  const wrong = (k) => cases[k].target !== null && cases[k].target !== cases[k].top;

  function showExplanation() {
    const view = document.getElementById("view-explain");
    view.classList.toggle("one", cases.length === 1);
    if (!view.querySelector(".main")) view.replaceChildren(cases.length > 1 ? imageList() : "", el("div", { class: "main" }));
    markImage();
    showCase();
  }

  function imageList() {
    const list = el("ul", { id: "images" });
    const known = cases.some((one) => one.target !== null);
    const search = el("input", {
      type: "search", placeholder: `Search ${cases.length} images`, "aria-label": "Search images by class or path",
      oninput: (event) => { filter = event.target.value; listImages(); },
    });
    const box = known ? el("label", { class: "soft" }, el("input", { type: "checkbox", id: "wrong", onchange: (event) => { wrongOnly = event.target.checked; listImages(); } }), " wrong ones only") : null;
    return el("div", { class: "images", role: "region", "aria-label": "Images" }, search, box, list);
  }

  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      target.src = source(Number(target.dataset.picture));
      seen.unobserve(target);
    }
  });
  /** A small picture that is decoded when it comes into view. */
  function thumbnail(picture) {
    const image = el("img", { alt: "", "data-picture": picture });
    seen.observe(image);
    return image;
  }

  function listImages() {
    const words = filter.toLowerCase(), list = document.getElementById("images");
    list.replaceChildren(...cases.map((one, k) => {
      const name = nameOf(one.top);
      const truth = one.target === null ? "" : nameOf(one.target);
      if (wrongOnly && !wrong(k)) return "";
      if (words && ![name, truth, one.image].some((text) => text.toLowerCase().includes(words))) return "";
      return el("li", {}, el("button", {
        type: "button", "data-image": k, onclick: () => go({ image: k, class: null, against: null }),
      },
        thumbnail(one.pictures[0]),
        el("span", {}, el("strong", {}, name),
          wrong(k) ? el("small", { class: "wrong" }, `wrong: it is ${truth}`) : el("small", {}, `${percent(one.probability)} ${fileOf(one.image)}`))));
    }));
    markImage();
  }

  function markImage() {
    const list = document.getElementById("images");
    if (!list) return;
    if (!list.childElementCount && !filter && !wrongOnly) return listImages();
    for (const button of list.querySelectorAll("button")) {
      const here = Number(button.dataset.image) === state.image;
      button.setAttribute("aria-current", String(here));
      if (here) reveal(list, button);
    }
  }

  /** Scrolls a list to one of its items. scrollIntoView would also move where the Tab key goes on from. */
  function reveal(list, item) {
    const [around, own] = [list.getBoundingClientRect(), item.getBoundingClientRect()];
    const off = (first, last, start, end) => (first < start ? first - start : last > end ? last - end : 0);
    list.scrollBy(off(own.left, own.right, around.left, around.right), off(own.top, own.bottom, around.top, around.bottom));
  }

  function go(change) {
    const step = (change.view ?? state.view) !== state.view || (change.image ?? state.image) !== state.image;
    state = { ...state, ...change };
    if ("image" in change || "class" in change) whole = false;
    show(step);
  }

  /** Connections of a class, the largest by size first. */
  function ledger(one, c, count) {
    const all = [];
    for (let e = links.start[c]; e < links.start[c + 1]; e++) all.push({ e, j: links.prototype[e], value: contribution(one, c, e) });
    all.sort((a, b) => Math.abs(b.value) - Math.abs(a.value) || a.e - b.e);
    return { all, kept: all.slice(0, count), rest: all.slice(count) };
  }

  function showCase() {
    const main = document.querySelector("#view-explain .main"), one = cases[state.image], c = chosenClass();
    const drawn = one.drawn[c], found = ledger(one, c, whole ? Infinity : SHOWN);
    const own = found.kept.filter((part) => data.prototypes[part.j].c === c && !data.prototypes[part.j].m && drawn?.parts[part.j]?.presence);
    const title = `what the network saw of ${one.image}`;
    main.replaceChildren(
      el("section", { class: "card live", "aria-label": "Prediction" }, el("div", { id: "live" })),
      el("section", { class: "card", "aria-label": "The logit" },
        el("div", { class: "choices" }, classChoice("explain", "class", c), classChoice("against", "against", rivalOf(c)), mapChoice(),
          cases.length > 1 ? el("span", {},
            el("button", { type: "button", id: "previous", disabled: state.image === 0, onclick: () => go({ image: state.image - 1, class: null, against: null }) }, "← previous"), " ",
            el("button", { type: "button", id: "next", disabled: state.image === cases.length - 1, onclick: () => go({ image: state.image + 1, class: null, against: null }) }, "next →")) : null),
        el("div", { class: "verdict", style: "margin-top:1rem" },
          el("div", { class: "seen" },
            figure({ big: true, picture: one.pictures[0], alt: title, caption: fileOf(one.image), title: `${title}` }),
            own.length > 1 ? figure({
              big: true, picture: one.pictures[0], alt: `all own prototypes of ${nameOf(c)} in the image`, caption: "its own prototypes, one colour each",
              all: { maps: own.map((part) => drawn.parts[part.j].presence), shades: own.map((part) => colourOf(c, part.j)), fulls: own.map((part) => data.prototypes[part.j].full) },
            }) : null),
          el("div", {}, el("h2", { id: "what" }), el("div", { class: "waterfall", id: "waterfall" }), el("p", { class: "note", id: "share" })))),
      editing(c),
      ...parts(one, c, found),
      residualCard(one, c, drawn),
      el("section", { class: "card", "aria-label": "Contrast" }, el("div", { id: "contrast" })),
      similar(one) ?? "", where(one) ?? "");
    update();
  }

  function classChoice(words, field, chosen) {
    const one = cases[state.image], order = best(logitsOf(state.image, new Map()), data.classes.length);
    const drawn = new Set(Object.keys(one.drawn).map(Number));
    const known = order.filter((c) => drawn.has(c) || has(c) || c === chosen);
    const option = (c) => el("option", { value: c, selected: c === chosen }, `${nameOf(c)} (${plain(logitsOf(state.image, new Map())[c])})`);
    return el("label", {}, words, el("select", { id: `choose-${field}`, onchange: (event) => go({ [field]: Number(event.target.value) }) }, known.map(option)));
  }

  function mapChoice() {
    const kinds = { presence: data.pooling === "max" ? "activation" : "where it is", contribution: "what each place adds" };
    const shown = cases[state.image].drawn[chosenClass()];
    if (!shown || !Object.values(shown.parts).some((part) => part.presence)) return null;
    return el("span", { class: "choices" },
      el("label", {}, "map", el("select", { id: "map", onchange: (event) => { mapKind = event.target.value; show(); } },
        Object.entries(kinds).map(([value, words]) => el("option", { value, selected: value === mapKind }, words)))),
      el("label", {}, el("input", { type: "checkbox", id: "smooth", checked: smooth, onchange: (event) => { smooth = event.target.checked; show(); } }), "smooth"));
  }

  function editing(c) {
    const none = !owns(c), nearest = none ? best(logitsOf(state.image, new Map()), data.classes.length).find(owns) : undefined;
    const words = data.pooling !== "sum" ? "its logit is always zero" : has(c) ? "its rows are parts of other classes, and more of its logit is residual" : "all of its logit is residual";
    return el("section", { class: "card", "aria-label": "Intervene" },
      el("h2", {}, "What if?"),
      none ? el("p", {}, `${nameOf(c)} has no prototypes of its own in this model: ${words}. ${has(c) ? "" : "There is nothing to switch off. "}`,
        nearest === undefined ? "" : el("button", { type: "button", id: "nearest", onclick: () => go({ class: nearest }) }, `explain ${nameOf(nearest)}, the best class with prototypes`)) :
        el("p", { class: "soft" }, "Switch a prototype off or change its strength below: the prediction follows at once. Edits stay when you go to another image."),
      el("p", { id: "hint", class: "soft" }), el("p", { id: "flips", "aria-live": "polite" }),
      el("div", { class: "command", id: "command", hidden: true },
        el("pre", {}, el("code", { id: "words" })),
        el("button", { type: "button", id: "copy", onclick: copy }, "copy"),
        el("button", { type: "button", id: "reset", onclick: () => { state.edits = new Map(); show(); } }, "reset")));
  }

  async function copy(event) {
    const words = document.getElementById("words"), button = event.currentTarget;
    try { await navigator.clipboard.writeText(words.textContent); } catch {
      const range = document.createRange();
      range.selectNodeContents(words);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      document.execCommand("copy");
    }
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  }

  function parts(one, c, found) {
    const heading = data.pooling === "soft" ? "This looks like these" : "This looks like that";
    const cards = found.kept.map((part) => partCard(one, c, part));
    if (found.all.length) cards.unshift(el("h2", {}, heading));
    if (found.rest.length) cards.push(el("p", { class: "more" }, el("button", { type: "button", id: "all", onclick: () => { whole = true; show(); } }, `show all ${found.all.length} prototypes`)));
    return cards;
  }

  function partCard(one, c, { e, j }) {
    const prototype = data.prototypes[j], shade = colourOf(c, j), seen = one.drawn[c]?.parts[j];
    const picture = one.pictures[prototype.m ?? 0], patches = prototype.patches ?? [];
    const maps = seen && { presence: seen.presence, contribution: contributionMap(c, j, seen) };
    const kind = maps?.[mapKind] ? mapKind : "presence";
    const style = kind === "contribution" && data.pooling === "sum" ? "signed" : "presence";
    const isPatch = data.pooling === "max", amount = evidence(one, c, e), lacking = links.amounts && amount < 0;
    const full = prototype.full === null ? null : prototype.full * (style === "signed" ? Math.abs(links.weight[e]) : 1);
    const flags = prototype.signs.map(([, words]) => el("span", { class: "chip warn" }, words));
    const head = el("header", {},
      el("h3", {}, swatch(shade), titleOf(j, c)),
      el("span", { class: "sum number" }, links.amounts ? `${plain(amount)} × ${signed(links.weight[e])} ` : `${signed(links.weight[e], 3)} × ${plain(amount)} `,
        el("span", { class: "soft" }, links.amounts ? `amount (usual ${plain(prototype.usual[0], 1)} to ${plain(prototype.usual[1], 1)}) × weight` : "weight × evidence"),
        links.share && links.share[e] ? ` ${signed(contribution(one, c, e) - links.weight[e] * amount)} of the residual` : "", " = ", el("b", {}, signed(contribution(one, c, e))), el("span", { class: "flipped", "data-now": key(c, j) })),
      prototype.network ? el("span", { class: "chip" }, prototype.network) : null,
      data.facts.some((fact) => fact.c === prototype.c) ? galleryLink(prototype.c, "in the gallery") : null,
      slider(c, j));
    const unplaced = kind === "contribution" && seen && Math.abs(seen.unplaced) > 5e-3 ? `${signed(seen.unplaced)} of it has no place` : null;
    const here = seen?.presence
      ? figure({ picture, map: maps[kind], style, full, box: lacking ? null : seen.box, shade, alt: `${titleOf(j, c)} in the image`, caption: unplaced ?? "this" })
      : figure({ picture, alt: "the image", caption: seen ? "this image: nothing can be placed" : one.drawn[c] ? "maps are kept of the largest contributions only" : "maps are kept of the explained classes only" });
    const that = patches.slice(0, PATCHES).map((patch, n) => figure({ ...patchOf(j, patch, shade), caption: (n ? "" : isPatch ? "its patch: " : lacking ? "less than none of: " : "that: ") + fileOf(patch[4]) }));
    const node = el("article", { class: "card part", "data-prototype": j }, head,
      flags.length ? el("div", { class: "chips", style: "margin-bottom:.6rem" }, flags) : null,
      el("div", { class: "pictures" }, here, el("div", { class: "that" }, that.length ? that : el("p", { class: "soft" }, prototype.patches ? "The file holds no training patches." : "Its training patches were left out."))));
    node.style.borderLeftColor = shade;
    return node;
  }

  function slider(c, j) {
    const name = key(c, j), words = titleOf(j, c), factor = state.edits.get(name) ?? 1;
    const range = el("input", { type: "range", min: 0, max: 2, step: 0.05, value: factor, "aria-label": `strength of ${words}`, "data-edit": name });
    const box = el("input", { type: "checkbox", "aria-label": `${words} on`, title: "on or off", checked: factor !== 0, "data-switch": name });
    const output = el("output", {});
    const say = (value) => { output.textContent = `× ${Number(value.toFixed(3))}`; };
    const set = (value) => {
      if (value === 1) state.edits.delete(name); else state.edits.set(name, value);
      range.value = value; box.checked = value !== 0; say(value);
      update(); writeAddress();
    };
    range.addEventListener("input", () => set(Number(range.value)));
    box.addEventListener("change", () => set(box.checked ? 1 : 0));
    say(factor);
    return el("span", { class: "edit" }, box, range, output);
  }

  function residualCard(one, c, drawn) {
    if (data.pooling !== "sum") return "";
    const maps = [];
    const tops = Object.entries(drawn?.parts ?? {}).map(([j, part]) => contributionMap(c, Number(j), part)).filter(Boolean).map(strongestOf);
    if (drawn?.residual) maps.push(figure({ picture: one.pictures[0], map: drawn.residual, style: "signed", full: links.amounts && tops.length ? Math.max(...tops) : null, alt: "what the residual adds at each place", caption: "what each place adds: red for the class, blue against it" }));
    if (drawn?.codes) maps.push(figure({ picture: one.pictures[0], map: drawn.codes, style: "presence", alt: "where the residual shows", caption: "where it shows" }));
    const left = residualOf(one, c), shared = links.share && has(c) && !left;
    const words = shared ? "Augmented prototypes carry the residual: nothing is left outside them."
      : "What the prototypes do not explain. It is part of the logit and cannot be switched off.";
    const node = el("section", { class: "card part", "aria-label": "Residual" },
      el("header", {}, el("h3", {}, swatch("var(--dark-bar)"), "residual"), shared ? null : el("span", { class: "sum number" }, el("b", {}, signed(left))), el("span", { class: "soft" }, words)),
      el("div", { class: "pictures" }, shared ? [] : maps));
    return node;
  }

  /** Everything that depends on the edits. */
  function update() {
    const k = state.image, one = cases[k], c = chosenClass(), before = logitsOf(k, new Map()), after = logitsOf(k, state.edits);
    drawPrediction(before, after);
    drawWaterfall(one, c, after[c]);
    drawContrast(one, c, rivalOf(c));
    drawHint(one, before);
    drawEdits();
    for (const node of document.querySelectorAll("[data-now]")) {
      const [edited, j] = node.dataset.now.split(".").map(Number), factor = factorOf(edited, j);
      node.textContent = factor === 1 ? "" : `  → ${signed(factor * contribution(one, edited, linkOf(edited, j)))}`;
    }
  }

  function bar(from, to, reach, shade, ghost) {
    const place = ([low, high]) => ({ x: 100 * (Math.min(low, high) - reach[0]) / (reach[1] - reach[0]), width: Math.max(0.25, 100 * Math.abs(high - low) / (reach[1] - reach[0])) });
    return svg("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("line", { x1: place([0, 0]).x, x2: place([0, 0]).x, y1: 0, y2: 10, stroke: "var(--grey-bar)", "vector-effect": "non-scaling-stroke" }),
      ghost === undefined ? null : svg("rect", { ...place([0, ghost]), y: 0, height: 10, fill: "var(--grey-bar)", opacity: 0.45 }),
      svg("rect", { ...place([from, to]), y: 1, height: 8, rx: 0.4, fill: shade }));
  }

  function drawPrediction(before, after) {
    const old = softmax(before), now = softmax(after), top = bestOne(after), was = bestOne(before);
    const rows = best(after, LISTED).flatMap((c) => [
      el("span", { title: nameOf(c) }, c === top ? el("b", {}, nameOf(c)) : nameOf(c)),
      bar(0, now[c], [0, 1], "var(--accent)", old[c]),
      el("span", { class: "number", "data-probability": c, "data-value": now[c] }, percent(now[c])),
      el("span", { class: "number soft", "data-logit": c, "data-value": after[c], title: "logit" }, plain(after[c])),
    ]);
    const truth = cases[state.image].target;
    const said = [
      top !== was ? el("span", { class: "flipped" }, `flipped from ${nameOf(was)}`) : null,
      truth !== null ? el("span", { class: truth === top ? "chip good" : "chip warn" }, truth === top ? "right" : `wrong: it is ${nameOf(truth)}`) : null,
    ];
    document.getElementById("live").replaceChildren(el("div", { class: "bars", id: "bars" }, rows),
      el("p", { class: "chips", style: "margin-top:.35rem", "aria-live": "polite" }, said.filter(Boolean)));
  }

  const factorOf = (c, j) => state.edits.get(key(c, j)) ?? 1;

  function drawWaterfall(one, c, logit) {
    const { kept, rest } = ledger(one, c, whole ? Infinity : SHOWN);
    const value = (part) => factorOf(c, part.j) * part.value;
    const steps = [];
    if (data.pooling === "sum") steps.push(["bias", bias[c], "var(--grey-bar)"]);
    for (const part of kept) steps.push([titleOf(part.j, c), value(part), colourOf(c, part.j), part.j]);
    if (rest.length) steps.push([`${rest.length} more`, rest.reduce((sum, part) => sum + value(part), 0), "var(--grey-bar)"]);
    if (one.unplaced) steps.push(["no place", unplacedOf(one, c, state.edits), "var(--grey-bar)"]);
    if (data.pooling === "sum" && (!links.share || !has(c) || residualOf(one, c))) steps.push(["residual", residualOf(one, c), "var(--dark-bar)"]);
    let level = 0;
    const levels = [0, ...steps.map(([, each]) => (level += each))];
    const reach = [Math.min(...levels), Math.max(...levels)];
    if (reach[0] === reach[1]) reach[1] += 1;
    level = 0;
    const rows = steps.flatMap(([name, each, shade, j]) => {
      const from = level;
      level += each;
      const off = j !== undefined && factorOf(c, j) !== 1 ? `× ${factorOf(c, j)}` : "";
      return [el("span", { title: name }, swatch(shade), name, off ? el("span", { class: "flipped" }, ` ${off}`) : ""), bar(from, level, reach, shade), el("span", { class: "number" }, signed(each))];
    });
    rows.push(el("span", { class: "total" }, "= logit"), el("span", { class: "total" }, bar(0, logit, reach, "var(--ink)")), el("span", { class: "number total", id: "logit", "data-value": logit }, plain(logit)));
    document.getElementById("waterfall").replaceChildren(...rows);
    document.getElementById("what").textContent = `What the logit of ${nameOf(c)} is made of`;
    const share = one.drawn[c]?.share;
    document.getElementById("share").textContent = data.pooling !== "sum" ? data.evidence
      : links.share && has(c) && !residualOf(one, c) ? "augmented prototypes: each carries its share of the residual"
        : share === null || share === undefined ? "" : `residual share ${percent(share, 0)}: what the prototypes do not carry of the logit`;
  }

  /** Rows of a contrast that were made for these two classes, on the same amounts. */
  function sameAmounts(one, a, b) {
    const found = one.contrasts.find(({ of }) => (of[0] === a && of[1] === b) || (of[0] === b && of[1] === a));
    if (!found) return null;
    const turn = ([x, y]) => (found.of[0] === a ? [x, y] : [y, x]);
    const lines = found.rows.map(([j, amount, x, y]) => [`prototype ${data.prototypes[j].n} of ${nameOf(data.prototypes[j].c)}`, turn([amount * x, amount * y]), plain(amount)]);
    if (found.rest[0]) lines.push([`${found.rest[0]} more prototypes`, turn(found.rest.slice(1))]);
    if (one.unplaced) lines.push(["no place", turn(found.unplaced)]);
    lines.push(["residual", turn(found.residual)], ["bias", turn(found.bias)]);
    const edited = [a, b].map((c) => { const { inside, outside } = changes(one, c, state.edits); return inside + outside; });
    if (edited.some(Boolean)) lines.push(["the edits", edited]);
    return lines;
  }

  /** Rows of a contrast of which each class reads its own evidence. */
  function ownEvidence(one, a, b) {
    const rows = new Map();
    for (const [side, c] of [[0, a], [1, b]])
      for (const part of ledger(one, c, Infinity).all) {
        if (!rows.has(part.j)) rows.set(part.j, [0, 0]);
        rows.get(part.j)[side] = factorOf(c, part.j) * part.value;
      }
    const sorted = [...rows].sort((p, q) => Math.abs(q[1][0] - q[1][1]) - Math.abs(p[1][0] - p[1][1]));
    const kept = sorted.slice(0, 8), rest = sorted.slice(8);
    const lines = kept.map(([j, pair]) => [`prototype ${data.prototypes[j].n} of ${nameOf(data.prototypes[j].c)}`, pair]);
    if (rest.length) lines.push([`${rest.length} more prototypes`, rest.reduce(([x, y], [, [p, q]]) => [x + p, y + q], [0, 0])]);
    if (one.unplaced) lines.push(["no place", [a, b].map((c) => unplacedOf(one, c, state.edits))]);
    if (data.pooling === "sum") lines.push(["residual", [residualOf(one, a), residualOf(one, b)]], ["bias", [bias[a], bias[b]]]);
    return lines;
  }

  function drawContrast(one, a, b) {
    const node = document.getElementById("contrast");
    if (a === b) { node.replaceChildren(); return; }
    const difference = ([x, y]) => x - y, same = sameAmounts(one, a, b), lines = same ?? ownEvidence(one, a, b);
    const after = logitsOf(state.image, state.edits);
    const top = Math.max(...lines.map(([, pair]) => Math.abs(difference(pair)))) || 1;
    const row = ([name, pair, amount], total) => el("tr", { class: total ? "total" : null },
      el("th", { scope: "row" }, name), same ? el("td", {}, amount ?? "") : null, el("td", {}, plain(pair[0])), el("td", {}, plain(pair[1])), el("td", {}, signed(difference(pair))),
      el("td", { class: "bar" }, total ? null : bar(0, difference(pair), [-top, top], difference(pair) < 0 ? "#0072B2" : "#D55E00")));
    node.replaceChildren(
      el("h2", {}, `Why ${nameOf(a)} and not ${nameOf(b)}?`),
      el("p", { class: "soft" }, difference([after[a], after[b]]) >= 0 ? `Its logit is ${plain(after[a] - after[b])} higher; this is where that comes from.` : `Its logit is ${plain(after[b] - after[a])} lower; this is where that comes from.`),
      el("div", { class: "scroll" }, el("table", { class: "contrast" },
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, ""), same ? el("th", { scope: "col" }, "amount") : null, el("th", { scope: "col" }, nameOf(a)), el("th", { scope: "col" }, nameOf(b)), el("th", { scope: "col" }, "difference"), el("th", { scope: "col", class: "bar" }, ""))),
        el("tbody", {}, lines.map((line) => row(line)), row(["logit", [after[a], after[b]]], true)))));
  }

  /** Which single prototype of the predicted class decides, or the fewest of its own evidence that do together. */
  function drawHint(one, before) {
    const [top, second] = best(before, 2), node = document.getElementById("hint");
    if (second === undefined) return;
    const margin = before[top] - before[second];
    const helpful = ledger(one, top, Infinity).all.map((part) => ({ ...part, value: part.value + aside(one, top, part.e) }))
      .filter((part) => part.value > 0).sort((a, b) => b.value - a.value);
    const alone = helpful.filter((part) => part.value > margin);
    const named = (found, word) => found.map((part) => titleOf(part.j, top)).join(word);
    let words;
    if (!helpful.length) words = `No prototype speaks for ${nameOf(top)}, so none can be taken from it.`;
    else if (alone.length) words = `Switching off ${named(alone.slice(0, 4), " or ")} alone flips the decision from ${nameOf(top)} to ${nameOf(second)}.`;
    else {
      let sum = 0, count = 0;
      while (count < helpful.length && sum <= margin) sum += helpful[count++].value;
      words = sum > margin ? `No single prototype flips the decision; switching off ${named(helpful.slice(0, count), " and ")} together makes it ${nameOf(second)}.`
        : `${nameOf(top)} stays first even without all the prototypes that speak for it.`;
    }
    if (state.edits.size) words = `Without the edits: ${words}`;
    const first = helpful[0] && margin < helpful.reduce((sum, part) => sum + part.value, 0);
    node.replaceChildren(words, " ", first ? el("button", { type: "button", id: "try", onclick: () => tryHint(top, helpful, margin) }, "try it") : "");
  }

  function tryHint(top, helpful, margin) {
    const edits = new Map();
    let sum = 0;
    for (const part of helpful) {
      if (sum > margin) break;
      edits.set(key(top, part.j), 0);
      sum += part.value;
    }
    whole = whole || edits.size > SHOWN;
    state = { ...state, class: chosenClass() === top ? state.class : top, edits };
    show();
  }

  function drawEdits() {
    const edits = state.edits, flips = document.getElementById("flips");
    document.getElementById("command").hidden = !edits.size;
    document.getElementById("words").textContent = command();
    if (!edits.size || cases.length < 2) { flips.replaceChildren(); return; }
    const changed = cases.map((_, k) => k).filter((k) => bestOne(logitsOf(k, edits)) !== cases[k].top);
    const known = cases.map((_, k) => k).filter((k) => cases[k].target !== null);
    const right = known.filter((k) => bestOne(logitsOf(k, edits)) === cases[k].target).length;
    const words = [`With these edits ${changed.length} of the ${cases.length} images here change their class`];
    if (known.length) words.push(`; right before: ${known.filter((k) => !wrong(k)).length}, after: ${right} of ${known.length}`);
    flips.replaceChildren(words.join("") + ". ", ...changed.slice(0, 6).flatMap((k) => [el("button", { type: "button", onclick: () => go({ image: k, class: null, against: null }) }, fileOf(cases[k].image)), " "]));
  }

  const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);
  /** A word that `--class` understands as exactly this class. */
  function wordOf(c) {
    const label = data.classes[c][0];
    return data.words[c] ?? label;
  }

  /** The command that does the same. */
  function command() {
    const one = cases[state.image], words = ["protonmf intervene", quoted(data.nameless ? "IMAGE" : one.image), "--model", quoted(data.file)];
    for (const c of editedClasses(state.edits)) {
      words.push("--class", quoted(wordOf(c)));
      for (const [name, factor] of state.edits) {
        const [edited, j] = name.split(".").map(Number), prototype = data.prototypes[j];
        if (edited !== c) continue;
        const number = prototype.c === c ? prototype.n : `${wordOf(prototype.c)}:${prototype.n}`;
        words.push(factor === 0 ? `--zero ${quoted(String(number))}` : `--scale ${quoted(`${number}=${factor}`)}`);
      }
    }
    if (data.option) words.push(data.option);
    return words.join(" ");
  }

  /** ProtoPNet's local analysis: the most similar prototypes of any class. */
  function similar(one) {
    if (!one.similar?.length) return null;
    const top = one.top;
    return el("section", { class: "card", "aria-label": "Local analysis" },
      el("h2", {}, "The most similar prototypes of any class"),
      el("p", { class: "soft" }, "Local analysis: the patch of this image, where it lies, and the training patch that it looks like."),
      one.similar.map((found) => {
        const prototype = data.prototypes[found.j], shade = data.palette[(prototype.n - 1) % data.palette.length];
        const picture = one.pictures[prototype.m ?? 0], own = prototype.patches?.[0];
        const name = `prototype ${prototype.n} of ${nameOf(prototype.c)}`;
        return el("div", { style: "margin:.9rem 0" },
          el("p", {}, swatch(shade), el("b", {}, name), ` similarity ${plain(found.evidence, 3)}, weight to ${nameOf(top)} ${signed(found.weight, 3)}`),
          el("div", { class: "pictures" },
            figure({ picture, box: found.box, cut: true, alt: `the patch of the image most like ${name}`, caption: "this patch" }),
            figure({ picture, box: found.box, map: found.map, style: "presence", shade, alt: `where ${name} lies in the image`, caption: "activation map" }),
            own ? figure({ ...patchOf(found.j, own, shade, true), caption: "looks like that" }) : null,
            own ? figure({ ...patchOf(found.j, own, shade), caption: fileOf(own[4]) }) : null));
      }));
  }

  /** Few-shot models: the image on the principal axes of the training images, and the nearest ones. */
  function where(one) {
    if (!one.near) return null;
    const { place, nearest, typical } = one.near;
    return el("section", { class: "card plane", "aria-label": "Where it lies" },
      el("h2", {}, "Where this image lies"),
      el("p", { class: "soft" }, "The star is this image; dots are training images, diamonds prototypes tied to the mean of the images that match them."),
      el("div", { class: "aside" }, el("div", {}, el("div", { class: "scroll" }, plane(place)), legend()),
        el("div", {}, el("h3", {}, "nearest training images"),
          el("ul", {}, nearest.map(([path, name, distance]) => el("li", {}, `${name}, ${distance.toFixed(2)} away: `, el("span", { class: "soft" }, tail(path, 40))))),
          el("p", { class: "note" }, typical ? `${percent(typical, 0)} of the training images are at least as far from their nearest neighbour.` : "No training image is as far from its nearest neighbour: it is unlike all of them."))));
  }

  function legend() {
    const present = [...new Set(data.plane.labels)].sort((a, b) => a - b).slice(0, 40);
    return el("p", { class: "chips" }, present.map((c) => el("span", { class: "chip" }, swatch(data.palette[c % data.palette.length]), nameOf(c))));
  }

  function plane(place) {
    const { samples, labels, prototypes, means, winners, shares, flagged } = data.plane;
    const all = [...samples, ...prototypes, ...(place ? [place] : [])], W = 640, H = 460, M = 34;
    const range = (axis) => { const values = all.map((point) => point[axis]); return [Math.min(...values), Math.max(...values)]; };
    const [[x0, x1], [y0, y1]] = [range(0), range(1)];
    const X = (x) => M + (W - 2 * M) * (x - x0) / (x1 - x0 || 1), Y = (y) => H - M - (H - 2 * M) * (y - y0) / (y1 - y0 || 1);
    const shade = (c) => data.palette[c % data.palette.length];
    const shape = (c, x, y) => Math.floor(c / data.palette.length) % 2
      ? svg("rect", { x: x - 4, y: y - 4, width: 8, height: 8, fill: shade(c), stroke: "var(--card)" })
      : svg("circle", { cx: x, cy: y, r: 4.5, fill: shade(c), stroke: "var(--card)" });
    const titled = (node, words) => { node.append(svg("title", {}, words)); return node; };
    const star = (x, y) => svg("path", { d: `M${x},${y - 13} l3.6,8.4 9.1,.8 -6.9,6 2.1,8.9 -7.9,-4.7 -7.9,4.7 2.1,-8.9 -6.9,-6 9.1,-.8 z`, fill: "#D55E00", stroke: "var(--card)", "stroke-width": 1.5 });
    return svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "training images and prototypes on their two principal axes" },
      samples.map(([x, y], n) => titled(shape(labels[n], X(x), Y(y)), nameOf(labels[n]))),
      prototypes.map(([x, y], j) => svg("line", { x1: X(x), y1: Y(y), x2: X(means[j][0]), y2: Y(means[j][1]), stroke: "var(--soft)" })),
      prototypes.map(([x, y], j) => titled(svg("rect", {
        x: -7, y: -7, width: 14, height: 14, transform: `translate(${X(x)} ${Y(y)}) rotate(45)`, fill: flagged.includes(j) ? "var(--card)" : "var(--ink)", stroke: "var(--ink)", "stroke-width": 1.5,
      }), `prototype ${data.prototypes[j].n} of ${nameOf(winners[j])}`)),
      prototypes.map(([x, y], j) => svg("text", { x: X(x) + (X(x) > 0.8 * W ? -11 : 11), y: Y(y) - 9, "text-anchor": X(x) > 0.8 * W ? "end" : "start", "font-size": 12, fill: "var(--ink)", stroke: "var(--card)", "stroke-width": 3, "paint-order": "stroke" }, `${nameOf(winners[j])} ${data.prototypes[j].n}`)),
      place ? titled(star(X(place[0]), Y(place[1])), "this image") : null,
      svg("text", { x: W / 2, y: H - 6, "text-anchor": "middle", "font-size": 12, fill: "var(--soft)" }, `first principal axis (${percent(shares[0], 0)} of the variance)`),
      svg("text", { x: 12, y: H / 2, "text-anchor": "middle", "font-size": 12, fill: "var(--soft)", transform: `rotate(-90 12 ${H / 2})` }, `second (${percent(shares[1], 0)})`));
  }

  // ---------- gallery ----------
  const signsOf = (fact) => data.own[fact.c].reduce((sum, j) => sum + data.prototypes[j].signs.length, 0);
  const last = (value, sign) => (value === null ? Infinity : sign * value);
  const SORTS = {
    name: ["name", null], index: ["index", (fact) => fact.c],
    residual: ["residual share, highest first", (fact) => last(fact.residual, -1)],
    accuracy: ["accuracy, lowest first", (fact) => last(fact.accuracy, 1)],
    stability: ["stability, lowest first", (fact) => last(fact.stability, 1)],
    suspicious: ["suspicious prototypes first", (fact) => -signsOf(fact)],
  };

  function chosenFacts() {
    const words = state.query.trim().toLowerCase();
    let found = data.facts.filter((fact) => !words || data.classes[fact.c].some((name) => name.toLowerCase().includes(words)) || String(fact.c) === words);
    if (state.suspicious) found = found.filter(signsOf);
    const rank = SORTS[state.sort][1];
    const byName = (a, b) => nameOf(a.c).localeCompare(nameOf(b.c), undefined, { numeric: true }) || a.c - b.c;
    return found.sort((a, b) => (rank ? rank(a) - rank(b) || byName(a, b) : byName(a, b)));
  }

  function showGallery() {
    const view = document.getElementById("view-gallery");
    if (!view.firstChild) view.append(galleryTools(), el("div", { id: "shelf" }));
    document.getElementById("query").value = state.query;
    document.getElementById("sort").value = state.sort;
    document.getElementById("only").checked = state.suspicious;
    drawShelf();
  }

  function galleryTools() {
    const change = (what) => { state = { ...state, page: 0, open: null, ...what }; drawShelf(); writeAddress(); };
    return el("div", { class: "tools" },
      el("input", { type: "search", id: "query", placeholder: "Search classes  ( / )", "aria-label": "Search classes", oninput: (event) => change({ query: event.target.value }) }),
      el("label", {}, "sort by", el("select", { id: "sort", onchange: (event) => change({ sort: event.target.value }) }, Object.entries(SORTS).map(([value, [words]]) => el("option", { value }, words)))),
      el("label", {}, el("input", { type: "checkbox", id: "only", onchange: (event) => change({ suspicious: event.target.checked }) }), "suspicious prototypes only"),
      el("span", { class: "count", id: "count", "aria-live": "polite" }));
  }

  function drawShelf() {
    const found = chosenFacts(), pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
    if (state.open !== null) {
      const place = found.findIndex((fact) => fact.c === state.open);
      if (place >= 0) state.page = Math.floor(place / PER_PAGE);
    }
    state.page = Math.min(state.page, pages - 1);
    const here = found.slice(state.page * PER_PAGE, (state.page + 1) * PER_PAGE);
    document.getElementById("count").textContent = `${found.length} of ${data.facts.length} classes`;
    const turn = (to) => () => { state = { ...state, page: to, open: null }; drawShelf(); writeAddress(); scrollTo(0, 0); };
    const pager = pages > 1 ? el("div", { class: "pager" },
      el("button", { type: "button", disabled: state.page === 0, onclick: turn(state.page - 1) }, "← previous"),
      el("span", {}, `page ${state.page + 1} of ${pages}`),
      el("button", { type: "button", disabled: state.page === pages - 1, onclick: turn(state.page + 1) }, "next →")) : "";
    document.getElementById("shelf").replaceChildren(
      data.plane && !state.query && !state.page ? el("section", { class: "card plane" }, el("h2", {}, "Training images and prototypes"), el("p", { class: "soft" }, "On their two principal axes. Diamonds are prototypes, tied to the mean of the images that match them; hollow ones are ambiguous or unused."), el("div", { class: "scroll" }, plane(null)), legend()) : "",
      ...here.map(classCard),
      here.length ? "" : el("p", { class: "card" }, data.facts.length ? "No class fits." : "This model has no prototypes."),
      pager);
    if (state.open !== null) document.getElementById(`class-${state.open}`)?.scrollIntoView();
  }

  function classCard(fact) {
    const c = fact.c, [label, name] = data.classes[c];
    const own = data.own[c].filter((j) => !state.suspicious || data.prototypes[j].signs.length);
    const predicted = cases.map((_, k) => k).filter((k) => cases[k].top === c);
    const chip = (words, kind = "", title = null) => el("span", { class: `chip ${kind}`, title }, words);
    const grid = el("div", { class: "prototypes" }, own.slice(0, CROWD).map(prototypeCard));
    return el("article", { class: "card class", id: `class-${c}` },
      el("header", {}, el("h2", { style: "margin:0" }, name), el("small", {}, `${label === name ? "" : `${label}, `}class ${c}`),
        el("span", { class: "chips" },
          fact.accuracy === null ? null : chip(`accuracy ${percent(fact.accuracy, 0)}`, "", `on ${data.measured}`),
          fact.residual === null ? null : chip(`residual share ${percent(fact.residual, 0)}`, "", "on the training images"),
          fact.stability === null ? null : chip(`stability ${fact.stability.toFixed(2)}`, fact.stability < data.unstable ? "warn" : ""),
          fact.images === null ? null : chip(`${fact.images} training images`),
          predicted.length ? el("a", {
            class: "chip", href: `#explain?image=${predicted[0]}`, title: "the images here that are predicted to be this class",
            onclick: (event) => { event.preventDefault(); go({ view: "explain", image: predicted[0], class: null, against: null }); scrollTo(0, 0); },
          }, `${predicted.length} explained`) : null)),
      grid,
      own.length > CROWD ? el("p", { class: "more" }, el("button", { type: "button", onclick: (event) => { grid.append(...own.slice(CROWD).map(prototypeCard)); event.target.remove(); } }, `show all ${own.length} prototypes`)) : null);
  }

  const galleryLink = (c, words) => el("a", {
    href: `#gallery?open=${c}`,
    onclick: (event) => { event.preventDefault(); go({ view: "gallery", open: c, query: "", suspicious: false }); },
  }, words);

  function prototypeCard(j) {
    const one = data.prototypes[j], shade = data.palette[(one.n - 1) % data.palette.length];
    const here = new Set(data.facts.map((fact) => fact.c));
    const link = (c, words) => (here.has(c) ? galleryLink(c, words) : words);
    const listed = (items) => items.flatMap((item, n) => (n ? [", ", item] : [item]));
    const weight = weightOf(one.c, j);
    const patches = (one.patches ?? []).map((patch) => figure({ ...patchOf(j, patch, shade), caption: null }));
    if (data.pooling === "max" && one.patches?.length) patches.unshift(figure({ ...patchOf(j, one.patches[0], shade, true), caption: "its patch" }));
    const node = el("section", { class: "prototype", "data-prototype": j },
      el("h4", {}, `prototype ${one.n}`,
        weight === null ? null : el("span", { class: "chip" }, `weight ${signed(weight, 3)}`),
        one.stability === null ? null : el("span", { class: `chip ${one.stability < data.unstable ? "warn" : ""}` }, `stability ${one.stability.toFixed(2)}`),
        one.network ? el("span", { class: "chip" }, one.network) : null),
      one.signs.length ? el("ul", { class: "signs" }, one.signs.map(([, words]) => el("li", {}, words))) : null,
      el("div", { class: "pictures" }, patches.length ? patches : el("p", {}, one.patches ? "The file holds no training patches." : "Its training patches were left out.")),
      one.patches?.length ? el("p", { title: one.patches.map((patch) => patch[4]).join("\n") }, `from ${tail(one.patches[0][4], 44)}${one.patches.length > 1 ? ` and ${one.patches.length - 1} more` : ""}`) : null,
      one.facts.length ? el("p", {}, one.facts.join(", ")) : null,
      one.near.length ? el("p", { title: "cosine, prototypes of other classes" }, "nearest: ", listed(one.near.map(([k, cosine]) => link(data.prototypes[k].c, `${nameOf(data.prototypes[k].c)} ${data.prototypes[k].n} (${plain(cosine)})`)))) : null,
      one.users.length ? el("p", {}, (links.amounts ? "counts at least half as much for " : "used by "), listed(one.users.slice(0, 5).map(([c, value]) => link(c, `${nameOf(c)} (${signed(value, 2)})`))), one.users.length > 5 ? ` and ${one.users.length - 5} more` : "") : null);
    node.style.borderLeftColor = shade;
    return node;
  }


  // ---------- keys and address ----------
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.getElementById("large").open) return;
    const typing = event.target.matches("input, select, textarea");
    if (event.key === "/" && !typing) {
      const field = document.querySelector(`#view-${state.view} input[type=search]`);
      if (field) { event.preventDefault(); field.focus(); }
    }
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step && !typing && state.view === "explain" && cases[state.image + step]) go({ image: state.image + step, class: null, against: null });
  });
  addEventListener("hashchange", () => { // by hand, or back and forth
    if (location.hash === "#main") writeAddress(); // the link that skips to the content
    if (location.hash === written) return;
    const edits = state.edits;
    state = readAddress();
    if (state.view !== "explain") state.edits = edits; // they come back with the explanations
    show();
    if (state.open === null) scrollTo(0, 0);
  });
  for (const link of document.querySelectorAll("nav a"))
    link.addEventListener("click", (event) => { event.preventDefault(); go({ view: link.dataset.view, open: null }); scrollTo(0, 0); });
  state = readAddress();
  show();
  document.documentElement.dataset.ready = Math.round(performance.now()); // milliseconds since the page was opened
})();
