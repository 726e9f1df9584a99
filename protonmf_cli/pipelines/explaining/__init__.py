"""Why a class, and what if a prototype were not."""
