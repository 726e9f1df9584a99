"""Pictures of invented birds whose parts are known: drawn from a seed, with a mask of every part and every object.

A bird is a body, of no class, with five parts; a class is a combination of shapes, and any two classes differ in two
parts at least. After FunnyBirds (Hesse, Schaub-Meyer and Roth, ICCV 2023), drawn flat here instead of rendered: every
part and every object of the background can be left out, and all else stays as it is, pixel by pixel.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations

import numpy as np
from PIL import Image, ImageDraw

SIDE = 112
"""Pixels of a picture."""
FINE = 3
"""Steps in a pixel that shapes are drawn in."""
CLASSES = 50
OUTLINE = 0.55
"""Brightness of outlines, of their shape's colour."""
SPLITS = {"train": 0, "val": 1, "check": 2}

Colour = tuple[int, int, int]
Shapes = tuple[tuple[int, ...], ...]
"""Of every class the number of the shape of each part."""
Points = np.ndarray
"""(n, 2) x and y, in sides of the picture, from the middle of a bird that looks to the left."""


@dataclass(frozen=True, eq=False)
class Shape:
    """A polygon in one colour; with an outline if it is `lined`."""

    points: Points
    colour: Colour
    lined: bool = True


# Shapes


def oval(x: float, y: float, wide: float, high: float, turn: float = 0.0, corners: int = 36) -> Points:
    """An ellipse by its middle, its radii and its turn in degrees."""
    t, a = np.linspace(0, 2 * np.pi, corners, endpoint=False), np.deg2rad(turn)
    along, across = wide * np.cos(t), high * np.sin(t)
    return np.stack([x + along * np.cos(a) - across * np.sin(a), y + along * np.sin(a) + across * np.cos(a)], axis=1)


def leaf(start: tuple[float, float], end: tuple[float, float], wide: float, steps: int = 12) -> Points:
    """Pointed at both ends, `wide` in the middle."""
    a, b = np.array(start), np.array(end)
    t = np.linspace(0, 1, steps)[:, None]
    across = np.array([-(b - a)[1], (b - a)[0]]) / np.linalg.norm(b - a)
    bulge = wide / 2 * np.sin(np.pi * t)
    return np.concatenate([a + t * (b - a) + bulge * across, (a + t * (b - a) - bulge * across)[::-1]])


def bar(*points: tuple[float, float], wide: float) -> Points:
    """A line of some width through two points or more."""
    p = np.array(points)
    along = np.gradient(p, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1) * wide / 2
    return np.concatenate([p + across, (p - across)[::-1]])


def star(x: float, y: float, radius: float, tips: int = 5, inner: float = 0.45) -> Points:
    """With its first tip above."""
    t = np.linspace(0, 2 * np.pi, 2 * tips, endpoint=False) - np.pi / 2
    r = np.where(np.arange(2 * tips) % 2 == 0, radius, radius * inner)
    return np.stack([x + r * np.cos(t), y + r * np.sin(t)], axis=1)


def _corners(*points: tuple[float, float]) -> Points:
    return np.array(points)


def _eyes(white: Colour, iris: Colour, near: float, pupil: float, *more: Shape) -> tuple[Shape, ...]:
    shapes: list[Shape] = []
    for x, y, r in ((-0.262, -0.185, 0.8 * near), (-0.195, -0.185, near)):
        shapes += [Shape(oval(x, y, r, r), white), Shape(oval(x - 0.2 * r, y, pupil * r, pupil * r), iris, lined=False)]
        shapes.append(Shape(oval(x - 0.3 * r, y, 0.35 * r, 0.35 * r), (15, 15, 20), lined=False))
    return (*shapes, *more)


def _legs(colour: Colour, wide: float, *foot: Points) -> tuple[Shape, ...]:
    shapes = []
    for x in (-0.03, 0.085):
        shapes.append(Shape(bar((x, 0.13), (x, 0.29), wide=wide), colour))
        shapes += [Shape(each + np.array((x, 0.29)), colour) for each in foot]
    return tuple(shapes)


def _curl() -> Points:
    t = np.linspace(0, 1.6 * np.pi, 14)
    arc = np.stack([0.345 + 0.085 * np.sin(t) * (1 - 0.06 * t), -0.025 + 0.09 * np.cos(t) * (1 - 0.06 * t)], axis=1)
    return bar((0.18, 0.06), *map(tuple, arc), wide=0.045)


PARTS: Mapping[str, tuple[tuple[Shape, ...], ...]] = {
    "beak": (
        (Shape(_corners((-0.285, -0.19), (-0.285, -0.09), (-0.40, -0.135)), (250, 205, 30)),),
        (Shape(_corners((-0.285, -0.165), (-0.285, -0.105), (-0.47, -0.12)), (240, 120, 20)),),
        (
            Shape(
                _corners(
                    (-0.28, -0.20), (-0.36, -0.19), (-0.405, -0.13), (-0.39, -0.05), (-0.35, -0.10), (-0.28, -0.09)
                ),
                (215, 40, 45),
            ),
        ),
        (
            Shape(
                _corners((-0.28, -0.165), (-0.36, -0.15), (-0.43, -0.165), (-0.44, -0.12), (-0.28, -0.12)),
                (70, 90, 110),
            ),
            Shape(_corners((-0.28, -0.12), (-0.42, -0.115), (-0.42, -0.08), (-0.28, -0.085)), (70, 90, 110)),
        ),
        (Shape(bar((-0.28, -0.15), (-0.35, -0.145), (-0.41, -0.10), (-0.43, -0.03), wide=0.04), (235, 110, 170)),),
    ),
    "eyes": (
        _eyes((250, 250, 250), (20, 20, 25), 0.042, 0.5),
        _eyes((240, 60, 50), (255, 225, 60), 0.042, 0.62),
        _eyes(
            (235, 245, 255),
            (40, 120, 235),
            0.046,
            0.75,
            Shape(_corners((-0.315, -0.245), (-0.14, -0.245), (-0.145, -0.20), (-0.31, -0.20)), (60, 75, 160)),
        ),
        _eyes(
            (130, 225, 80),
            (20, 80, 30),
            0.04,
            0.6,
            Shape(bar((-0.305, -0.205), (-0.225, -0.195), wide=0.028), (25, 25, 25), lined=False),
            Shape(bar((-0.225, -0.20), (-0.135, -0.245), wide=0.028), (25, 25, 25), lined=False),
        ),
    ),
    "wings": (
        (
            Shape(oval(0.07, 0.02, 0.15, 0.095, 15), (50, 110, 225)),
            Shape(oval(0.06, 0.015, 0.09, 0.05, 15), (130, 180, 250), lined=False),
        ),
        (
            Shape(
                _corners((-0.06, -0.03), (0.05, -0.07), (0.30, 0.02), (0.20, 0.055), (0.05, 0.09), (-0.04, 0.06)),
                (40, 160, 70),
            ),
            Shape(bar((0.0, 0.02), (0.22, 0.025), wide=0.02), (210, 240, 120), lined=False),
        ),
        tuple(
            Shape(leaf((-0.05, -0.02), end, 0.085), (150, 70, 190))
            for end in ((0.12, 0.17), (0.18, 0.13), (0.24, 0.07), (0.27, 0.0))
        ),
        (
            Shape(oval(0.075, 0.02, 0.16, 0.085, 10), (245, 245, 235)),
            *(
                Shape(
                    bar((x, 0.02 - h + 0.17 * (x - 0.075)), (x, 0.02 + h + 0.17 * (x - 0.075)), wide=0.035),
                    (235, 120, 30),
                    lined=False,
                )
                for x, h in ((-0.03, 0.05), (0.04, 0.075), (0.11, 0.075), (0.18, 0.05))
            ),
        ),
        (
            Shape(oval(0.07, 0.015, 0.145, 0.10, 5), (20, 150, 160)),
            *(
                Shape(oval(x, y, 0.026, 0.026), (255, 225, 60), lined=False)
                for x, y in ((0.0, 0.01), (0.06, -0.035), (0.07, 0.055), (0.135, 0.01))
            ),
        ),
        (
            Shape(
                _corners(
                    (-0.05, 0.05),
                    (-0.03, -0.10),
                    (0.06, -0.27),
                    (0.10, -0.14),
                    (0.17, -0.21),
                    (0.17, -0.08),
                    (0.25, -0.11),
                    (0.17, 0.05),
                ),
                (205, 35, 60),
            ),
        ),
    ),
    "feet": (
        _legs((240, 130, 30), 0.018, bar((-0.05, 0.01), (0.03, 0.01), wide=0.02)),
        _legs(
            (250, 215, 40),
            0.022,
            _corners((0.01, -0.015), (-0.075, 0.03), (-0.04, 0.02), (-0.015, 0.035), (0.015, 0.02), (0.045, 0.03)),
        ),
        _legs((55, 85, 200), 0.045, oval(-0.018, 0.0, 0.052, 0.028)),
        _legs(
            (40, 40, 45),
            0.024,
            *(leaf((0.0, -0.01), end, 0.022) for end in ((-0.065, 0.035), (-0.02, 0.045), (0.04, 0.035))),
        ),
    ),
    "tail": (
        tuple(
            Shape(leaf((0.16, 0.06), end, 0.07), (220, 45, 40))
            for end in ((0.36, -0.10), (0.40, -0.03), (0.42, 0.05), (0.39, 0.13))
        ),
        (Shape(_corners((0.17, 0.03), (0.42, -0.05), (0.31, 0.06), (0.42, 0.15), (0.17, 0.11)), (35, 55, 130)),),
        tuple(
            Shape(bar((0.18, 0.06), (0.28, 0.05), (0.38, y), (0.45, 1.6 * y), wide=0.03), (40, 170, 90))
            for y in (0.0, 0.08)
        ),
        (
            Shape(oval(0.32, 0.03, 0.13, 0.13), (30, 140, 150)),
            *(
                Shape(oval(x, y, 0.033, 0.033), (250, 210, 50))
                for x, y in ((0.32, -0.045), (0.39, 0.0), (0.39, 0.07), (0.32, 0.105))
            ),
        ),
        (
            Shape(_corners((0.17, 0.01), (0.35, 0.02), (0.35, 0.12), (0.17, 0.12)), (130, 80, 40)),
            Shape(_corners((0.30, 0.02), (0.35, 0.02), (0.35, 0.12), (0.30, 0.12)), (245, 240, 225)),
        ),
        (Shape(_curl(), (140, 60, 180)),),
        tuple(
            Shape(oval(x, y, 0.05, 0.05), (240, 120, 180))
            for x, y in ((0.24, 0.05), (0.30, -0.02), (0.31, 0.10), (0.37, 0.04))
        ),
        (
            Shape(
                _corners(
                    (0.17, 0.04), (0.33, 0.03), (0.32, -0.05), (0.45, 0.06), (0.32, 0.16), (0.33, 0.09), (0.17, 0.09)
                ),
                (245, 190, 20),
            ),
        ),
    ),
}
"""Part -> its shapes, one of which a class has."""
NAMES = tuple(PARTS)
BEHIND, BEFORE = ("tail", "feet"), ("beak", "eyes", "wings")
"""Drawn before the body, and after it."""
BODY, FIRST_PART, FIRST_OBJECT = 1, 2, 2 + len(PARTS)
"""Names of what steps are of; 0 is the sky."""
BODY_COLOURS: tuple[Colour, ...] = ((196, 168, 130), (160, 150, 150), (205, 195, 170), (150, 125, 105), (180, 185, 190))
OBJECT_COLOURS = tuple(dict.fromkeys(shape.colour for shapes in PARTS.values() for each in shapes for shape in each))
"""Objects have the parts' colours, so that no colour tells a class."""


# Classes


@lru_cache
def classes(count: int = CLASSES, seed: int = 0) -> Shapes:
    """A shape of each part for every class; two classes differ in two parts at least."""
    generator = np.random.default_rng(seed)
    numbers = [len(PARTS[name]) for name in NAMES]
    found: list[tuple[int, ...]] = []
    while len(found) < count:
        new = tuple(int(generator.integers(n)) for n in numbers)
        if all(sum(a != b for a, b in zip(new, old, strict=True)) >= 2 for old in found):
            found.append(new)
    return tuple(found)


def fitting(all_classes: Shapes, c: int, visible: Collection[int]) -> list[int]:
    """Classes that look like class c in the parts that can be seen."""
    return [n for n, other in enumerate(all_classes) if all(other[k] == all_classes[c][k] for k in visible)]


@lru_cache(1000)
def smallest_sufficient(all_classes: Shapes, c: int) -> list[frozenset[int]]:
    """Sets of parts that only class c has, of which no part can be spared."""
    found: list[frozenset[int]] = []
    count = len(all_classes[c])
    for size in range(1, count + 1):
        for chosen in map(frozenset, combinations(range(count), size)):
            if not any(smaller <= chosen for smaller in found) and fitting(all_classes, c, chosen) == [c]:
                found.append(chosen)
    return found


def class_name(c: int) -> str:
    return f"bird_{c:02d}"


# Scenes


@dataclass(frozen=True, eq=False)
class Scene:
    """All that is in a picture beside the parts of its bird."""

    turn: float
    """Degrees."""
    size: float
    middle: tuple[float, float]
    looks_right: bool
    body: Colour
    sky: np.ndarray
    """(2, 3) colours above and below."""
    objects: tuple[tuple[Shape, ...], ...]
    """In sides of the picture from its upper left corner."""
    light: tuple[float, float]
    noise: int
    """Seed of the noise."""


def scene_of(seed: int, split: str, number: int) -> Scene:
    """Scene of one picture of a split."""
    generator = np.random.default_rng([seed, SPLITS[split], number])
    base = generator.uniform(110, 235, 3)
    return Scene(
        turn=float(generator.uniform(-15, 15)),
        size=float(generator.uniform(0.82, 1.06)),
        middle=(float(generator.uniform(0.45, 0.55)), float(generator.uniform(0.44, 0.54))),
        looks_right=bool(generator.integers(2)),
        body=BODY_COLOURS[generator.integers(len(BODY_COLOURS))],
        sky=np.clip(np.stack([base, base + generator.uniform(-60, 60, 3)]), 60, 245),
        objects=tuple(_object(generator) for _ in range(generator.integers(3, 7))),
        light=(float(generator.uniform(-0.15, 0.15)), float(generator.uniform(-0.15, 0.15))),
        noise=int(generator.integers(2**31)),
    )


def _object(generator: np.random.Generator) -> tuple[Shape, ...]:
    colour = OBJECT_COLOURS[generator.integers(len(OBJECT_COLOURS))]
    other = OBJECT_COLOURS[generator.integers(len(OBJECT_COLOURS))]
    x, y = generator.uniform(0.06, 0.94, 2)
    r, turn = generator.uniform(0.05, 0.11), generator.uniform(0, np.pi)
    ahead = np.array([np.cos(turn), np.sin(turn)])
    kind = int(generator.integers(7))
    if kind == 0:
        return tuple(Shape(oval(x + s * r, y - 0.3 * r * (s == 0), r, 0.7 * r), colour) for s in (-0.8, 0.8, 0))
    if kind == 1:
        return (Shape(star(x, y, 1.2 * r, int(generator.integers(4, 8))), colour),)
    if kind == 2:
        return (Shape(oval(x, y, r, r), colour), Shape(oval(x, y, 0.55 * r, 0.55 * r), other, lined=False))
    if kind == 3:
        a, b = (x, y) - 1.6 * r * ahead, (x, y) + 1.6 * r * ahead
        return (
            Shape(leaf(tuple(a), tuple(b), r), colour),
            Shape(bar(tuple(a), tuple(b), wide=0.012), other, lined=False),
        )
    if kind == 4:
        return (Shape(oval(x, y, 1.4 * r, 1.4 * r, float(np.rad2deg(turn)), corners=3), colour),)
    if kind == 5:
        return (Shape(oval(x, y, 1.2 * r, 1.2 * r, float(np.rad2deg(turn)), corners=4), colour),)
    return tuple(Shape(bar((x - 2 * r, y + s * r), (x + 2 * r, y + s * r), wide=0.45 * r), colour) for s in (-0.5, 0.5))


# Pictures


@dataclass(frozen=True, eq=False)
class Picture:
    """What is seen, and where it is."""

    pixels: np.ndarray
    """(SIDE, SIDE, 3) uint8"""
    names: np.ndarray
    """(SIDE, FINE, SIDE, FINE) uint8: what each step is of, as of a `_Canvas`."""
    object_count: int

    @cached_property
    def parts(self) -> np.ndarray:
        """(parts, SIDE, SIDE) bool: pixels that hold some of each part, nowhere where it is left out."""
        return np.stack([(self.names == FIRST_PART + k).any(axis=(1, 3)) for k in range(len(NAMES))])

    @cached_property
    def objects(self) -> np.ndarray:
        """(objects, SIDE, SIDE) bool: the same of the background's objects."""
        return np.stack([(self.names == FIRST_OBJECT + k).any(axis=(1, 3)) for k in range(self.object_count)])

    def boxes(self) -> list[tuple[int, int, int, int] | None]:
        """Left, top, right, bottom of each part; None where it is not seen."""
        found: list[tuple[int, int, int, int] | None] = []
        for mask in self.parts:
            y, x = np.nonzero(mask)
            found.append((int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1) if len(x) else None)
        return found

    def middles(self) -> list[tuple[float, float] | None]:
        """x and y of the pixel of each part that is nearest to its middle; None where it is not seen."""
        found: list[tuple[float, float] | None] = []
        for mask in self.parts:
            places = np.argwhere(mask)
            if not len(places):
                found.append(None)
                continue
            y, x = places[((places - places.mean(axis=0)) ** 2).sum(axis=1).argmin()]
            found.append((float(x), float(y)))
        return found


class _Canvas:
    """Colours, and in the same steps the names of what they are of."""

    def __init__(self, scene: Scene) -> None:
        self.scene, wide = scene, SIDE * FINE
        ramp = np.linspace(0, 1, wide)[:, None]
        sky = scene.sky[0] + ramp * (scene.sky[1] - scene.sky[0])
        self.colours = Image.fromarray(np.broadcast_to(sky[:, None], (wide, wide, 3)).round().astype(np.uint8))
        self.names = Image.new("L", (wide, wide))
        self.pens = ImageDraw.Draw(self.colours), ImageDraw.Draw(self.names)

    def draw(self, shapes: Iterable[Shape], name: int, *, of_bird: bool = True) -> None:
        for shape in shapes:
            points = self._placed(shape.points) if of_bird else shape.points
            corners = [(float(x), float(y)) for x, y in points * (SIDE * FINE)]
            line = tuple(round(OUTLINE * v) for v in shape.colour) if shape.lined else shape.colour
            self.pens[0].polygon(corners, fill=shape.colour, outline=line, width=2)
            self.pens[1].polygon(corners, fill=name, outline=name, width=2)

    def _placed(self, points: Points) -> Points:
        a, scene = np.deg2rad(self.scene.turn), self.scene
        flipped = points * ((-1, 1) if scene.looks_right else (1, 1))
        return scene.size * flipped @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) + scene.middle


def body_of(colour: Colour) -> tuple[Shape, ...]:
    """What every bird has."""
    pale: Colour = tuple(min(255, round(v + 0.4 * (255 - v))) for v in colour)  # type: ignore[assignment]
    return (
        Shape(oval(0.035, 0.03, 0.215, 0.15, 8), colour),
        Shape(oval(-0.19, -0.15, 0.118, 0.115), colour),
        Shape(oval(-0.10, -0.055, 0.145, 0.10, 42), colour, lined=False),
        Shape(oval(0.0, 0.085, 0.16, 0.08, 8), pale, lined=False),
    )


def draw(
    scene: Scene, shapes: Sequence[int], *, without: Collection[int] = (), without_objects: Collection[int] = ()
) -> Picture:
    """A bird in a scene.

    Args:
        scene: pose and background.
        shapes: number of the shape of each part, in the order of `NAMES`.
        without: parts that are left out.
        without_objects: objects of the background that are left out.
    """
    canvas = _Canvas(scene)
    for n, each in enumerate(scene.objects):
        if n not in without_objects:
            canvas.draw(each, FIRST_OBJECT + n, of_bird=False)
    for names in (BEHIND, ("body",), BEFORE):
        for name in names:
            if name == "body":
                canvas.draw(body_of(scene.body), BODY)
            elif (k := NAMES.index(name)) not in without:
                canvas.draw(PARTS[name][shapes[k]], FIRST_PART + k)
    pixels = _lit(np.asarray(canvas.colours.reduce(FINE), dtype=np.float32), scene)
    return Picture(pixels, np.asarray(canvas.names).reshape(SIDE, FINE, SIDE, FINE), len(scene.objects))


def sketch(scene: Scene, shapes: Iterable[Shape]) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8: other shapes than a bird's in a scene."""
    canvas = _Canvas(scene)
    canvas.draw(shapes, BODY)
    return _lit(np.asarray(canvas.colours.reduce(FINE), dtype=np.float32), scene)


def _lit(pixels: np.ndarray, scene: Scene) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8 with light and noise, which are the same whatever is left out."""
    ramp = np.linspace(-1, 1, SIDE)
    light = 1 + scene.light[0] * ramp[:, None] + scene.light[1] * ramp
    noise = 4 * np.random.default_rng(scene.noise).standard_normal((SIDE, SIDE, 1), dtype=np.float32)
    return np.clip(pixels * light[:, :, None].astype(np.float32) + noise, 0, 255).round().astype(np.uint8)


def left_out(seed: int, split: str, number: int) -> frozenset[int]:
    """Parts that a picture of a training set lacks: none of every other picture, else one to four of five."""
    generator = np.random.default_rng([seed, SPLITS[split], number, 1])
    if split == "val" or generator.integers(2) == 0:
        return frozenset()
    return frozenset(generator.choice(len(NAMES), int(generator.integers(1, len(NAMES))), replace=False).tolist())
