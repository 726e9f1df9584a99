"""Tables and sheets of pictures, before they are written or drawn."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table."""

    key: str
    """Of the rows; `key + "_interval"` holds [low, high] where there is one."""
    heading: str
    kind: str = "number"
    """percent, number, count or text: how it is written."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """How a table is drawn: one line or group of bars per column."""

    x: str
    """Key of the horizontal axis."""
    lines: tuple[str, ...]
    """Keys of the columns drawn."""
    y: str
    """Name of the vertical axis."""
    bars: bool = False
    by: str | None = None
    """Key whose values make separate lines."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """One of the tables of `evaluate`, ready for the terminal, JSON and a figure."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[dict[str, Any], ...]
    charts: tuple[Chart, ...]
    notes: tuple[str, ...] = ()
    """What a reader must know to read the numbers."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Figures that are not rows; for the JSON."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture of a sheet."""

    crop: np.ndarray
    """(height, width, channels) uint8"""
    maps: tuple[np.ndarray, ...] = ()
    """(h, w) each; none shows the crop alone."""
    style: str = "composite"
    """composite: one colour per map; heat: one map >= 0; signed: one map, red for and blue against."""
    caption: str = ""
    full: tuple[float | None, ...] = ()
    """Value of each map that is drawn at full strength; its own maximum where it is None or missing."""
    unit: str = ""
    """Of the values of a single map; none: they are not written beside it."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One picture of a strip: a crop with a map and a box on it."""

    crop: np.ndarray | bytes
    """(height, width, channels) uint8, or a JPEG file."""
    map: np.ndarray | None = None
    """(h, w) as it is drawn: zero is nothing."""
    box: tuple[int, int, int, int] | None = None
    cut: bool = False
    """Show only what is inside the box."""
    full: float | None = None
    """Value of the map that is drawn at full strength; its own maximum if None."""


@dataclass(frozen=True, kw_only=True)
class Strip:
    """One prototype in a gallery: words at the left, then pictures."""

    title: str
    words: tuple[str, ...]
    cells: tuple[Cell, ...]
    number: int
    """Decides the colour."""
