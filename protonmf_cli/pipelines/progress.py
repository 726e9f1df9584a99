"""How a long job says where it is and what it noticed, without knowing who listens."""

import logging
from typing import Protocol

from protonmf_cli.errors import in_python


class Progress(Protocol):
    """Listener to a job of several stages."""

    def stage(self, name: str, total: int | None = None) -> None:
        """A new stage begins; `total` steps are expected in it."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Some steps of the stage are done."""

    def note(self, text: str) -> None:
        """Something good to know."""

    def warn(self, text: str) -> None:
        """Something that may be wrong."""

    def log(self, text: str) -> None:
        """One line of a long job's diary."""

    def detail(self, text: str) -> None:
        """Something for those who asked for more."""


class Silent:
    """A listener that ignores everything."""

    def stage(self, name: str, total: int | None = None) -> None: ...

    def advance(self, steps: int = 1, note: str = "") -> None: ...

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def log(self, text: str) -> None: ...

    def detail(self, text: str) -> None: ...


class Logged(Silent):
    """A listener that hands everything but single steps to the logger "protonmf": warnings are seen by default."""

    _logger = logging.getLogger("protonmf")

    def stage(self, name: str, total: int | None = None) -> None:
        """At level INFO."""
        self._logger.info("%s%s", name, "" if total is None else f" ({total})")

    def note(self, text: str) -> None:
        """At level INFO."""
        self._logger.info(in_python(text))

    def warn(self, text: str) -> None:
        """At level WARNING."""
        self._logger.warning(in_python(text))

    def log(self, text: str) -> None:
        """At level INFO."""
        self._logger.info(in_python(text))

    def detail(self, text: str) -> None:
        """At level DEBUG."""
        self._logger.debug(in_python(text))


SILENT = Silent()
LOGGED = Logged()
"""What jobs called from Python report to unless they are given another listener."""
