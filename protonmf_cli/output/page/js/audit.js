// What an audit found: every prototype in the order in which it should be looked at, the first ones with pictures.

/** Rows of the table on one page. */
const ROWS = 50;
/** Cards that "show the next" adds; as many are drawn at first where nothing looks like a shortcut. */
const MORE_CARDS = 6;
/** Cards at first, of shortcuts. */
const MOST_CARDS = 24;

const ranks = new Map((data.audit?.ranked ?? []).map((one, n) => [one.j, n]));
/** Cards that are drawn. */
let cardsDrawn = 0;

/** @param {Audit} audit */
function showAudit(audit) {
  const view = byId("view-audit");
  if (!view.firstChild) {
    view.append(auditSummary(audit), el("div", { id: "suspects" }), el("p", { class: "more", id: "more-suspects" }),
      el("h2", { id: "ranking-title" }, "All prototypes, the most suspicious first"), rankingTools(audit),
      scrolled("Ranking", el("div", { id: "ranking" })), el("div", { id: "ranking-pager" }));
    const shortcuts = pictured(audit).reduce((count, one, n) => (one.shortcut ? n + 1 : count), 0);
    drawSuspects(audit, Math.min(MOST_CARDS, shortcuts) || MORE_CARDS);
  }
  /** @type {HTMLInputElement} */ (byId("find")).value = state.find;
  if (state.at !== null) bring(audit, state.at);
  drawRanking(audit);
  if (state.at !== null)
    (document.getElementById(`suspect-${state.at}`) ?? document.getElementById(`rank-${state.at}`))?.scrollIntoView();
}

/**
 * Draw what there is of a prototype: its card, or its row.
 * @param {Audit} audit
 * @param {number} j
 */
function bring(audit, j) {
  const rank = ranks.get(j) ?? 0, cards = pictured(audit), place = cards.findIndex((one) => one.j === j);
  if (place >= cardsDrawn) drawSuspects(audit, place + 1);
  if (place < 0) {
    state.find = "";
    state.rows = Math.floor(rank / ROWS);
  }
}

/** @param {Audit} audit */
const pictured = (audit) => audit.ranked.filter((one) => one.regions);

/** @param {Audit} audit */
function auditSummary(audit) {
  const found = audit.ranked.filter((one) => one.shortcut), all = audit.ranked.length;
  const said = found.length === 0 ? `None of ${all} prototypes looks like a shortcut`
    : found.length === 1 ? `1 of ${all} prototypes looks like a shortcut`
      : `${found.length} of ${all} prototypes look like shortcuts`;
  const below = el("a", {
    href: "#audit", onclick: (event) => {
      event.preventDefault();
      byId("ranking-title").scrollIntoView();
      byId("find").focus({ preventScroll: true });
    },
  }, "The ranking of all of them");
  return el("section", { class: "card", id: "audit-summary", "aria-label": "What the audit found" },
    el("h2", {}, said),
    el("p", {}, `Tried on ${audit.images} images, of which the model tells ${percent(audit.accuracy)} right. `, below,
      " stands at the end."),
    el("p", { class: "soft" }, "A prototype looks like a shortcut when its training patches, pasted into images of other "
      + "classes, turn these into its class, more often than other pieces of the same pictures do, and its class keeps its "
      + "images when it is taken out. That is a reason to look, not a proof."),
    audit.groups.length ? groupTable(audit) : null,
    audit.notes.map((note) => el("p", { class: "notice" }, note)),
    found.length > 1 ? [el("p", { class: "soft before" }, "Takes all of them out:"), commandBox(removal(audit, found))] : null);
}

/** @param {Audit} audit */
function groupTable({ groups }) {
  const rows = [...groups].sort((a, b) => a[2] - b[2]).map(([name, images, accuracy]) =>
    el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, String(images)), el("td", {}, percent(accuracy))));
  const heads = ["group", "images", "accuracy"].map((name) => el("th", { scope: "col" }, name));
  return scrolled("Groups", el("table", { class: "figures", id: "groups" },
    el("thead", {}, el("tr", {}, heads)), el("tbody", {}, rows)));
}

/**
 * Draw cards up to a number of them.
 * @param {Audit} audit
 * @param {number} count
 */
function drawSuspects(audit, count) {
  const cards = pictured(audit), more = byId("more-suspects");
  byId("suspects").append(...cards.slice(cardsDrawn, count).map((one) => suspectCard(audit, one)));
  cardsDrawn = Math.max(cardsDrawn, Math.min(count, cards.length));
  const left = cards.length - cardsDrawn, next = Math.min(left, MORE_CARDS);
  const words = `show the next ${next} of ${left} with pictures`;
  more.replaceChildren(left ? el("button", {
    type: "button", id: "more-cards", onclick: () => drawSuspects(audit, cardsDrawn + MORE_CARDS),
  }, words) : "");
}

/**
 * @param {Audit} audit
 * @param {Candidate} one
 */
function suspectCard(audit, one) {
  const { c, n } = data.prototypes[one.j];
  const node = el("article", { class: "card suspect", id: `suspect-${one.j}`, "data-prototype": one.j },
    el("header", {},
      el("h3", {}, el("span", { class: "rank", title: "place in the ranking" }, String((ranks.get(one.j) ?? 0) + 1)), " ",
        galleryLink(c, `${nameOf(c)}, prototype ${n}`)),
      one.shortcut ? chip("⚠︎ looks like a shortcut", "warn") : chip("does not look like a shortcut"),
      el("span", { class: "soft" }, word("score"), ` ${plain(one.score)}`)),
    el("p", {}, sentence(one.reason)),
    signsBeside(one),
    el("div", { class: "findings" }, takenOver(one, c), missed(audit, one, c)),
    pastedRegions(one),
    pairsOf(one),
    el("p", { class: "soft before" }, links.amounts ? "Takes it out of every class:" : `Takes it out of ${nameOf(c)}:`),
    commandBox(removal(audit, [one])));
  return node;
}

/** @param {string} words */
const sentence = (words) => words.slice(0, 1).toUpperCase() + words.slice(1) + (words.endsWith(".") ? "" : ".");

/**
 * Signs that the reason does not name, and the share outside the objects.
 * @param {Candidate} one
 */
function signsBeside({ signs, reason, outside }) {
  const words = signs.filter((sign) => !reason.includes(sign));
  if (outside !== null && !reason.includes("outside the object")) words.push(`${percent(outside, 0)} of its maps lie outside the objects`);
  return words.length ? el("ul", { class: "aside-signs" }, words.map((each) => el("li", {}, each))) : null;
}

/**
 * Shares of images of other classes that go to the class, each with its interval, and what they are compared with.
 * @param {Candidate} one
 * @param {number} c
 */
function takenOver({ transplant }, c) {
  const title = el("h4", {}, `Images of other classes that go to ${nameOf(c)}`,
    el("span", { class: "soft" }, " (95 % ", word("interval", "intervals"), ")"));
  if (!transplant) return el("section", {}, title, el("p", { class: "soft" }, "Nothing could be pasted."));
  /** @type {[name: string, share: Share, shade: string][]} */
  const rows = [
    ["its patches pasted in", transplant.flips, "var(--accent)"],
    ["other places of its pictures", transplant.elsewhere, "var(--grey-bar)"],
    ["the class's other prototypes", transplant.siblings, "var(--grey-bar)"],
    ["its patches, and it is taken out", transplant.left, "var(--dark-bar)"],
  ];
  if (transplant.recoloured[0])
    rows.push(["its pictures' colours", transplant.recoloured, "var(--accent)"],
      ["its colours, and it is taken out", transplant.recolouredLeft, "var(--dark-bar)"]);
  return el("section", {}, title, el("div", { class: "shares" }, rows.map(([name, share, shade]) => [
    el("span", {}, name), shareBar(share, shade), el("span", { class: "said" }, shareWords(share)),
  ])));
}

/** @param {Share} share */
const valueOf = ([hits, trials]) => (trials ? hits / trials : 0);

/** @param {Share} share */
function shareWords(share) {
  const [hits, trials, low, high] = share;
  if (!trials) return el("span", { class: "soft" }, "not tried");
  return [el("b", {}, percent(valueOf(share), 0)), " ",
    el("span", { class: "soft" }, `${hits} of ${trials}, ${plain(100 * low, 0)} to ${percent(high, 0)}`)];
}

/**
 * A bar from 0 to 1 with whiskers of the interval; the numbers stand beside it.
 * @param {Share} share
 * @param {string} shade
 */
function shareBar(share, shade) {
  const [, trials, low, high] = share;
  const line = (/** @type {Attributes} */ ends) => svg("line", {
    ...ends, stroke: "var(--ink)", "stroke-width": 1.5, "vector-effect": "non-scaling-stroke",
  });
  return svg("svg", { viewBox: "0 0 100 12", preserveAspectRatio: "none", "aria-hidden": "true" },
    trials ? [
      svg("rect", { x: 0, y: 1.5, width: 100 * valueOf(share), height: 9, fill: shade }),
      line({ x1: 100 * low, x2: 100 * high, y1: 6, y2: 6 }),
      [low, high].map((end) => line({ x1: 100 * end, x2: 100 * end, y1: 2.5, y2: 9.5 })),
    ] : null);
}

/**
 * What is lost when the prototype is taken out.
 * @param {Audit} audit
 * @param {Candidate} one
 * @param {number} c
 */
function missed(audit, { need }, c) {
  const title = el("h4", {}, "When it is ", word("taken out"));
  if (!need) {
    const words = `There is no image of ${nameOf(c)} in the audit: nobody knows whether it needs the prototype.`;
    return el("section", {}, title, el("p", { class: "soft" }, words));
  }
  /** @type {[name: string, change: Change | null, written: (value: number) => string][]} */
  const rows = [
    [`accuracy of ${nameOf(c)} (${need.images} image${need.images === 1 ? "" : "s"})`, need.own, percent],
    ["its mean probability there", need.probability, (value) => plain(value)],
    [`accuracy of all ${audit.images} images`, need.everything, percent],
    ["accuracy of the worst group", need.worst, percent],
  ];
  return el("section", {}, title, el("table", { class: "figures" },
    el("thead", {}, el("tr", {}, ["", "before", "after"].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, rows.map(([name, change, written]) => change && el("tr", {},
      el("th", { scope: "row" }, name), change.map((value) => el("td", {}, written(value))))))));
}

/** @param {Candidate} one */
function pastedRegions({ j, regions = [] }) {
  const found = data.prototypes[j].patches ?? [], shade = paletteOf(data.prototypes[j].n - 1);
  const shots = found.map((patch, n) => figure({
    ...patchOf(j, patch, shade), box: null, cells: regions[n], caption: fileOf(patch[4]),
  }));
  return el("section", {}, el("h4", {}, "Its training patches", regions.some((cells) => cells.length)
    ? el("span", { class: "soft" }, " (outlined: what is ", word("pasted"), ")") : null),
    el("div", { class: "pictures" }, shots.length ? shots : el("p", { class: "soft" }, patchless(data.prototypes[j]))));
}

/** @param {Candidate} one */
function pairsOf({ pasted = [], transplant }) {
  if (!pasted.length) return null;
  const coloured = transplant?.byColours;
  return el("section", {},
    el("h4", {}, coloured ? "Images of other classes in its pictures' colours" : "Pasted into images of other classes"),
    el("div", { class: "pairs" }, pasted.map(({ path, target, before, after, pictures: [host, changed] }) => {
      const truly = before === target ? "" : `, truly ${nameOf(target)}`;
      const words = (/** @type {string} */ when, /** @type {number} */ c) => `${when}: ${nameOf(c)}`;
      return el("div", { class: "pair" },
        figure({ picture: host, alt: `${path} before`, caption: words("before", before) }),
        el("span", { class: "arrow", "aria-hidden": "true" }, "→"),
        figure({ picture: changed, alt: `${path} with the ${coloured ? "colours" : "patch"}`, caption: words("after", after) }),
        el("p", { class: "soft", title: path }, `${tail(path, 44)}${truly}`));
    })));
}

/**
 * The command that takes prototypes out: of every class where the model can, else of their own.
 * @param {Audit} audit
 * @param {Candidate[]} found
 */
function removal(audit, found) {
  /** @type {Map<number, number[]>} */
  const numbers = new Map();
  for (const { j } of found) {
    const { c, n } = data.prototypes[j];
    numbers.set(c, [...numbers.get(c) ?? [], n]);
  }
  const edits = [...numbers].map(([c, own]) => `--class ${quoted(wordOf(c))} --zero ${own.join(",")}`);
  // of an augmented model the audit took out the prototype alone, without its share of the residual
  const how = links.amounts ? "--everywhere" : links.share ? "--form plain" : "";
  return ["protonmf intervene --model", quoted(data.file), how, ...edits,
    ...audit.data.map(quoted), "-o clean.safetensors"].filter(Boolean).join(" ");
}

/** @param {Audit} audit */
function rankingTools(audit) {
  const search = el("input", {
    type: "search", id: "find", placeholder: "Search classes  ( / )", "aria-label": "Search classes of the ranking",
    oninput: (event) => {
      state = { ...state, find: event.target.value, rows: 0, at: null };
      drawRanking(audit);
      writeAddress();
    },
  });
  return el("div", { class: "tools" }, search, el("span", { class: "count", id: "ranked", "aria-live": "polite" }));
}

/** @param {Audit} audit */
function drawRanking(audit) {
  const words = state.find.trim().toLowerCase();
  const found = audit.ranked.filter(({ j }) =>
    !words || data.classes[data.prototypes[j].c].some((name) => name.toLowerCase().includes(words)));
  const pages = Math.max(1, Math.ceil(found.length / ROWS));
  state.rows = Math.min(state.rows, pages - 1);
  const here = found.slice(state.rows * ROWS, (state.rows + 1) * ROWS);
  const turn = (/** @type {number} */ rows) => {
    state = { ...state, rows, at: null };
    drawRanking(audit);
    writeAddress();
    byId("ranking-title").scrollIntoView();
  };
  byId("ranked").textContent = `${found.length} of ${audit.ranked.length} prototypes`;
  byId("ranking").replaceChildren(here.length ? rankingTable(here) : el("p", { class: "card" }, "No class fits."));
  byId("ranking-pager").replaceChildren(pages > 1 ? pager(state.rows, pages, turn) : "");
}

/** @param {Candidate[]} here */
function rankingTable(here) {
  const heads = ["", "prototype", "verdict", "pasted", "other places", "other prototypes", "taken out", "colours",
    "class, before", "after", "score"];
  const share = (/** @type {Share | undefined} */ one) => (one && one[1] ? percent(valueOf(one), 0) : "");
  const row = (/** @type {Candidate} */ one) => {
    const { j, transplant: tried, need } = one, { c, n } = data.prototypes[j], name = `${nameOf(c)}, prototype ${n}`;
    const cells = [share(tried?.flips), share(tried?.elsewhere), share(tried?.siblings), share(tried?.left),
      share(tried?.recoloured), ...(need?.own ?? ["", ""]).map((value) => (value === "" ? "" : percent(Number(value), 0))),
      plain(one.score)];
    return el("tr", { id: `rank-${j}`, class: one.shortcut ? "flagged" : null },
      el("td", {}, String((ranks.get(j) ?? 0) + 1)),
      el("th", { scope: "row" }, one.regions ? auditLink(j, name) : galleryLink(c, name)),
      el("td", { class: "verdict-word" }, one.shortcut ? "⚠︎ shortcut?" : "–"),
      cells.map((text) => el("td", {}, text)));
  };
  return el("table", { class: "figures ranking" },
    el("thead", {}, el("tr", {}, heads.map((name) => el("th", { scope: "col" }, word(name))))),
    el("tbody", {}, here.map(row)));
}

/**
 * @param {number} j
 * @param {string} words
 * @param {string | null} kind
 */
const auditLink = (j, words, kind = null) => el("a", {
  href: `#audit?at=${j}`, class: kind,
  onclick: (event) => {
    event.preventDefault();
    go({ view: "audit", at: j });
  },
}, words);

/**
 * Where a prototype of the gallery stands in the ranking.
 * @param {number} j
 */
const auditChip = (j) => suspectChip(j)
  ?? (ranks.has(j) ? auditLink(j, `audit: place ${(ranks.get(j) ?? 0) + 1}`, "chip") : null);

/** @param {number} j */
function suspectChip(j) {
  const rank = ranks.get(j);
  return rank !== undefined && data.audit?.ranked[rank].shortcut
    ? auditLink(j, "⚠︎ looks like a shortcut", "chip warn") : null;
}
