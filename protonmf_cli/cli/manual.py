"""protonmf manual: the pages that the README leaves out, from the installed package."""

import difflib
import sys
from importlib.resources import files
from typing import Annotated

import typer

from protonmf_cli.cli.console import Shown, put
from protonmf_cli.errors import UsageError

PAGES = files("protonmf_cli").joinpath("manual")
SUFFIX = ".md"


def manual(
    topic: Annotated[str | None, typer.Argument(help="Page to show; without one, all of them are listed.")] = None,
) -> None:
    """Show a page of the manual, or list its topics.

    Example: protonmf manual words
    """
    pages = {p.name.removesuffix(SUFFIX): p for p in PAGES.iterdir() if p.name.endswith(SUFFIX)}
    if topic is None:
        _list({name: page.read_text(encoding="utf-8") for name, page in sorted(pages.items())})
    elif topic in pages:
        _show(pages[topic].read_text(encoding="utf-8"))
    else:
        close = difflib.get_close_matches(topic.lower(), pages, n=3, cutoff=0.5)
        hint = f"Did you mean {', '.join(close)}? " if close else ""
        raise UsageError(f"the manual has no topic {topic!r}. {hint}`protonmf manual` lists the topics.")


def about(page: str) -> str:
    """The sentence under the title.

    >>> about("# Title\\n\\nWhat it is\\nabout.\\n\\nThe rest.")
    'What it is about.'
    """
    return " ".join(page.split("\n\n")[1].split())


def _list(pages: dict[str, str]) -> None:
    shown = Shown()
    shown.lines({name: about(page) for name, page in pages.items()})
    shown.out.print("\n`protonmf manual TOPIC` shows one.", markup=False)


def _show(page: str) -> None:
    """Drawn on a terminal; elsewhere as it is."""
    if not sys.stdout.isatty():
        put(page)
        return
    from rich.markdown import Markdown

    Shown().out.print(Markdown(page))
