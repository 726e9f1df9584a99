"""How a long job says where it is, without knowing who listens."""

from typing import Protocol


class Progress(Protocol):
    """Listener to a job of several stages."""

    def stage(self, name: str, total: int | None = None) -> None:
        """A new stage begins; `total` steps are expected in it."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Some steps of the stage are done."""

    def warn(self, text: str) -> None:
        """Something the user should know."""


class Silent:
    """A listener that ignores everything."""

    def stage(self, name: str, total: int | None = None) -> None: ...

    def advance(self, steps: int = 1, note: str = "") -> None: ...

    def warn(self, text: str) -> None: ...


SILENT = Silent()
