"""The page: one HTML file that explains and edits."""
