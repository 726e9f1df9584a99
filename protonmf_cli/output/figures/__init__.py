"""Pictures: PNG, SVG and PDF."""
