// Words of the trade, explained where they stand: each is a button that shows what the summary says of it.

/** The word whose explanation is seen. */
let explained = /** @type {Element | null} */ (null);
/** The word whose explanation was closed with the pointer on it. */
let dismissed = /** @type {Element | null} */ (null);
/** When an explanation that the pointer left goes. */
let leaving = 0;

/** @param {string} name */
const aboutId = (name) => `about-${name.replaceAll(" ", "-")}`;

/**
 * A word with what it means, or the word alone where nothing is said of it.
 * @param {string} name  in the summary's list of words
 * @param {string} text
 */
const word = (name, text = name) => (document.getElementById(aboutId(name))
  ? el("button", { type: "button", class: "word", "aria-describedby": aboutId(name) }, text) : text);

/** @param {Element} button */
function explainWord(button) {
  const tip = byId("tip");
  clearTimeout(leaving);
  explained = button;
  tip.textContent = byId(button.getAttribute("aria-describedby") ?? "")?.textContent ?? "";
  tip.hidden = false;
  const at = button.getBoundingClientRect(), own = tip.getBoundingClientRect();
  const left = Math.max(8, Math.min(at.left, document.documentElement.clientWidth - own.width - 8));
  const below = at.bottom + 6, fits = below + own.height <= innerHeight || at.top - own.height - 6 < 0;
  tip.style.left = `${left + scrollX}px`;
  tip.style.top = `${(fits ? below : at.top - own.height - 6) + scrollY}px`;
}

function hideWord() {
  clearTimeout(leaving);
  explained = null;
  byId("tip").hidden = true;
}

/**
 * The word that something happened to.
 * @param {Event} event
 */
const wordAt = (event) => (event.target instanceof Element ? event.target.closest(".word") : null);
/** @param {Event} event */
const inTip = (event) => event.target instanceof Node && byId("tip").contains(event.target);

function watchWords() {
  document.addEventListener("pointermove", (event) => { // not where the page moves under a pointer that rests
    const found = wordAt(event);
    if (inTip(event)) clearTimeout(leaving);
    else if (found && found !== explained && found !== dismissed && event.pointerType === "mouse") explainWord(found);
  });
  document.addEventListener("pointerout", (event) => {
    if (wordAt(event) === dismissed) dismissed = null;
    if (!explained || event.pointerType !== "mouse" || document.activeElement === explained) return;
    if (wordAt(event) || inTip(event)) leaving = setTimeout(hideWord, 250);
  });
  document.addEventListener("focusin", (event) => {
    const found = wordAt(event);
    if (found) explainWord(found);
    else if (explained) hideWord();
  });
  document.addEventListener("click", (event) => {
    const found = wordAt(event);
    if (found) explainWord(found);
    else if (explained && !inTip(event)) hideWord();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !explained) return;
    dismissed = explained;
    hideWord();
  });
}
