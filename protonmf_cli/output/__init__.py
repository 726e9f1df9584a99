"""Results shown: records, text, figures and the page."""
