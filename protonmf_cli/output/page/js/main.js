// Keys, links and the address; then the first view.

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /** @type {HTMLDialogElement} */ (byId("large")).open) return;
  const typing = /** @type {Element} */ (event.target).matches("input, select, textarea");
  if (typing) return;
  if (event.key === "/") {
    /** @type {HTMLInputElement | null} */
    const field = document.querySelector(`#view-${state.view} input[type=search]`);
    if (field) {
      event.preventDefault();
      field.focus();
    }
  }
  const step = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
  if (step && state.view === "explain" && cases[state.image + step]) go({ ...FRESH, image: state.image + step });
});

addEventListener("hashchange", () => { // by hand, or back and forth
  if (location.hash === "#main") writeAddress(); // the link that skips to the content
  if (location.hash === written) return;
  const edits = state.edits;
  state = readAddress();
  if (state.view !== "explain") state.edits = edits; // they come back with the explanations
  show();
  if (state.open === null && state.at === null) scrollTo(0, 0);
});

for (const link of navigation())
  link.addEventListener("click", (event) => {
    event.preventDefault();
    go({ view: link.dataset.view, open: null, at: null });
    hideWord();
    scrollTo(0, 0);
  });

watchWords();
watchRows();
narrow.addEventListener("change", () => {
  byId("view-explain").replaceChildren();
  show();
});
state = readAddress();
show();
document.documentElement.dataset.ready = String(Math.round(performance.now())); // milliseconds since it was opened
