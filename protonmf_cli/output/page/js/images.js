// The list of explained images.

/** Words that their classes or paths hold. */
let searched = "";
let wrongOnly = false;

/** @param {Case} one */
const isWrong = (one) => one.target !== null && one.target !== one.top;

function imageList() {
  const list = el("ul", { id: "images" });
  const known = cases.some((one) => one.target !== null);
  const search = el("input", {
    type: "search", placeholder: `Search ${cases.length} images`, "aria-label": "Search images by class or path",
    oninput: (event) => { searched = event.target.value; listImages(); },
  });
  const box = el("input", {
    type: "checkbox", id: "wrong", onchange: (event) => { wrongOnly = event.target.checked; listImages(); },
  });
  return el("div", { class: "images", role: "region", "aria-label": "Images" },
    search, known ? el("label", { class: "soft" }, box, " wrong ones only") : null, list);
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
    const name = nameOf(one.top), truth = one.target === null ? "" : nameOf(one.target);
    if (wrongOnly && !isWrong(one)) return "";
    if (words && ![name, truth, one.image].some((text) => text.toLowerCase().includes(words))) return "";
    const said = isWrong(one) ? el("small", { class: "wrong" }, `wrong: it is ${truth}`)
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
  if (!list.childElementCount && !searched && !wrongOnly) {
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
  const off = (first, last, start, end) => (first < start ? first - start : last > end ? last - end : 0);
  list.scrollBy(
    off(own.left, own.right, around.left, around.right), off(own.top, own.bottom, around.top, around.bottom));
}
