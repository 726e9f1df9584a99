"""Pages of the manual, in Markdown: a title, one sentence that says what the page is about, and the page."""
