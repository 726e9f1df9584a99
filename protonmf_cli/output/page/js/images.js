// The list of explained images.

/** Words that their classes or paths hold. */
let searched = "";
/** Which images are listed, a name in `FILTERS`. */
let listedOnly = "all";

/** @type {Record<string, (one: Case) => boolean>} */
const FILTERS = { all: () => true, right: isRight, wrong: isWrong };

/** The image that is seen first: right and confident, of a class with prototypes; or else the first of such a class. */
function goodExample() {
  const own = [...cases.keys()].filter((k) => ownsSome(cases[k].first ?? cases[k].top));
  const right = own.filter((k) => isRight(cases[k]) && cases[k].first === null);
  const sure = (/** @type {number} */ k) => Math.round(1000 * cases[k].probability);
  const left = (/** @type {number} */ k) => cases[k].drawn[cases[k].top]?.share ?? 0; // of the logit, to the residual
  return right.sort((a, b) => sure(b) - sure(a) || left(a) - left(b) || a - b)[0] ?? own[0] ?? 0;
}

function imageList() {
  const list = el("ul", { id: "images" });
  const known = cases.some((one) => one.targets.length);
  const search = el("input", {
    type: "search", placeholder: `Search ${cases.length} images`, "aria-label": "Search images by class or path",
    oninput: (event) => { searched = event.target.value; listImages(); },
  });
  const choose = (/** @type {any} */ event) => { listedOnly = event.target.value; listImages(); };
  const filter = el("select", { id: "listed-only", "aria-label": "Which images are listed", onchange: choose },
    Object.entries(FILTERS).map(([name, fits]) =>
      el("option", { value: name }, `${name} (${cases.filter(fits).length})`)));
  const all = [search, known ? filter : null, list];
  return el("div", { class: "images", role: "region", "aria-label": "Images" },
    narrow.matches ? fold("images", `All ${cases.length} images`, all) : all);
}

const whenSeen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    const image = /** @type {HTMLImageElement} */ (target);
    image.src = source(Number(image.dataset.picture));
    whenSeen.unobserve(image);
  }
});
/**
 * A small picture that is decoded when it comes into view.
 * @param {number} picture
 */
function thumbnail(picture) {
  const image = el("img", { alt: "", "data-picture": picture });
  whenSeen.observe(image);
  return image;
}

function listImages() {
  const words = searched.toLowerCase();
  byId("images").replaceChildren(...cases.map((one, k) => {
    const name = namesOf(one.said) || "no label", truth = namesOf(one.targets);
    if (!FILTERS[listedOnly](one)) return "";
    if (words && ![name, truth, one.image].some((text) => text.toLowerCase().includes(words))) return "";
    const said = isWrong(one) ? el("small", { class: "wrong" }, wrongWords(one.targets, one.said))
      : el("small", {}, `${percent(one.probability)} ${fileOf(one.image)}`);
    return el("li", {},
      el("button", { type: "button", "data-image": k, onclick: () => go({ ...FRESH, image: k }) },
        thumbnail(one.pictures[0]), el("span", {}, el("strong", {}, name), said)));
  }));
  markImage();
}

function markImage() {
  const list = document.getElementById("images");
  if (!list) return;
  if (!list.childElementCount && !searched && listedOnly === "all") {
    listImages();
    return;
  }
  for (const button of list.querySelectorAll("button")) {
    const here = Number(button.dataset.image) === state.image;
    button.setAttribute("aria-current", String(here));
    if (here) reveal(list, button);
  }
}

/**
 * Scrolls a list to one of its items. scrollIntoView would also move where the Tab key goes on from.
 * @param {HTMLElement} list
 * @param {HTMLElement} item
 */
function reveal(list, item) {
  const around = list.getBoundingClientRect(), own = item.getBoundingClientRect();
  /** @type {(first: number, last: number, start: number, end: number) => number} */
  const off = (first, last, start, end) => (first < start || last > end ? (first + last - start - end) / 2 : 0);
  list.scrollBy(
    off(own.left, own.right, around.left, around.right), off(own.top, own.bottom, around.top, around.bottom));
}
