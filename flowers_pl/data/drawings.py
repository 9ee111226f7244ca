"""Drawings of five kinds of flowers, so that everything runs without a network and without photos.

Colours, backgrounds and light overlap between the kinds: shapes distinguish them, not the mean colour.
Shapes are arrays of complex numbers in the flower's own frame: centre 0, radius of the head 1, +1j is down.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

KINDS: tuple[str, ...] = ("daisy", "dandelion", "rose", "sunflower", "tulip")

VERSION = 1  # raise it when a drawing changes: folders of another version are then drawn again
_OVERSAMPLE = 3  # drawn this much larger and averaged down, for clean edges
_GOLDEN = np.pi * (3 - 5**0.5)  # the angle between neighbouring seeds of a sunflower (Vogel, 1979)

Colour = tuple[int, ...]  # red, green, blue and, where given, opacity, each in 0..255
Points = NDArray[np.complexfloating]

_WARM = ((200, 20, 40), (235, 90, 130), (250, 240, 228), (252, 222, 120), (248, 170, 125), (246, 160, 188))
_TULIP = ((205, 25, 40), (240, 110, 40), (120, 60, 150), (248, 205, 60), (190, 45, 120), (246, 238, 226))
_WHITE = ((252, 252, 248), (250, 238, 244), (244, 178, 208), (214, 190, 240), (253, 246, 196))
_YELLOW = ((255, 216, 20), (250, 190, 10), (255, 228, 70), (245, 165, 20))
_AMBER = ((255, 205, 30), (250, 170, 20), (240, 130, 25), (255, 226, 90), (205, 85, 35))
_GREY = ((236, 236, 232), (214, 214, 210), (240, 236, 222))
_GREEN = ((70, 130, 45), (100, 155, 65), (50, 105, 55), (125, 160, 75))
_DARK = ((60, 36, 20), (90, 55, 25), (45, 30, 28), (105, 75, 30))


@dataclass
class _Brush:
    """A brush that draws shapes given in one flower's frame onto the canvas."""

    draw: ImageDraw.ImageDraw
    rng: np.random.Generator
    centre: complex  # of the flower's head, in pixels of the canvas
    radius: float  # of the head, in pixels
    turn: complex = 1 + 0j  # of length 1: how the frame is rotated
    tilt: float = 1.0  # 1: seen from straight above; less: squeezed along the frame's vertical

    def coordinates(self, shapes: Points) -> list[list[float]]:
        """Return the canvas's x, y, x, y, ... of each of `shapes` (count, points)."""
        # multiplies imaginary parts by tilt
        tilted = (1 + self.tilt) / 2 * shapes + (1 - self.tilt) / 2 * shapes.conj()
        points = self.centre + self.radius * self.turn * tilted
        return points.view(np.float64).tolist()

    def fill(self, shape: Points, colour: Colour, edge: float = 0) -> None:
        """Fill a polygon; `edge` above 0 outlines it with the colour times that."""
        self.fill_each(shape[None], [colour], edge)

    def fill_each(self, shapes: Points, colours: Iterable[Colour], edge: float = 0) -> None:
        """Fill one polygon after the other: `shapes` is (count, points)."""
        for flat, colour in zip(self.coordinates(shapes), colours, strict=True):
            self.draw.polygon(flat, fill=colour, outline=_shade(colour, edge) if edge else None)

    def line(self, shape: Points, colour: Colour, width: float) -> None:
        """Draw an open line, `width` in radii."""
        pixels = max(1, round(width * self.radius))
        self.draw.line(self.coordinates(shape[None])[0], fill=colour, width=pixels, joint="curve")

    def count(self, low: int, high: int) -> int:
        """Draw an integer uniformly from low..high, both included."""
        return int(self.rng.integers(low, high + 1))

    def pick(self, palette: tuple[Colour, ...]) -> Colour:
        """Draw a colour near one of the palette."""
        return _shade(palette[self.rng.integers(len(palette))], self.rng.uniform(0.88, 1.08))


def _shade(colour: Colour, factor: float) -> Colour:
    return tuple(min(255, int(level * factor)) for level in colour[:3]) + colour[3:]


def _circle(radius: float, points: int = 28) -> Points:
    return np.asarray(radius * np.exp(2j * np.pi * np.arange(points) / points))


def _spiral(radius: float, count: int) -> Points:
    """Spread `count` points evenly over a disc."""
    index = np.arange(count)
    return np.asarray(radius * np.sqrt((index + 0.5) / count) * np.exp(1j * _GOLDEN * index))


def _leaf(width: float, base: float, tip: float) -> Points:
    """Outline a petal or leaf from 0 to 1, `width` at its widest; a small `base` or `tip` blunts that end."""
    along = np.linspace(0, 1, 10)
    half = along**base * (1 - along) ** tip
    side = along + 1j * half * (width / 2 / half.max())
    return np.concatenate([side, side[-2:0:-1].conj()])


def _ring(brush: _Brush, count: int, inner: float, outer: float, petal: Points, colour: Colour) -> None:
    """Draw `count` petals around the centre, from radius `inner` to about `outer`, no two quite alike."""
    uneven = np.arange(count) + brush.rng.uniform(-0.22, 0.22, count)
    angles = brush.rng.permutation(2 * np.pi * uneven / count) + brush.rng.uniform(0, 2 * np.pi)
    length = outer * brush.rng.uniform(0.88, 1.05, (count, 1)) - inner
    petals = np.exp(1j * angles)[:, None] * (inner + length * petal.real + 1j * petal.imag)
    brush.fill_each(petals, [_shade(colour, f) for f in brush.rng.uniform(0.86, 1.06, count)], edge=0.72)


def _stem(brush: _Brush, width: float, leaves: int, leaf: Points) -> None:
    """Draw a bent stem from the centre to below the picture, with leaves along it."""
    green, along, bend = brush.pick(_GREEN), np.linspace(0, 1, 12), brush.rng.uniform(-0.7, 0.7)
    stem = 7j * along + 6 * bend * along**2
    for _ in range(leaves):
        side = -1j * np.exp(1j * brush.rng.choice([-1, 1]) * brush.rng.uniform(0.3, 1.1))
        shape = stem[brush.count(2, 3)] + side * brush.rng.uniform(1.2, 2.0) * leaf
        brush.fill(shape, _shade(green, brush.rng.uniform(0.75, 1.1)), edge=0.72)
        brush.line(shape[[0, 8]], _shade(green, 0.65), 0.03)
    brush.line(stem, _shade(green, 0.75), width)
    brush.line(stem - 0.15 * width, _shade(green, 1.1), width * 0.4)


def _disc(brush: _Brush, radius: float, colour: Colour, seeds: int) -> None:
    """Draw a flower's centre, covered with seeds."""
    brush.fill(_circle(radius), _shade(colour, 0.8), edge=0.72)
    lights = brush.rng.uniform(0.75, 1.4, seeds)
    spots = _spiral(0.92 * radius, seeds)[:, None] + _circle(0.032, 6)
    brush.fill_each(spots, [_shade(colour, light) for light in lights])


def _daisy(brush: _Brush) -> None:
    _stem(brush, 0.12, brush.count(0, 2), _leaf(0.3, 0.8, 0.6))
    white, count = brush.pick(_WHITE), brush.count(12, 23)
    petal = _leaf(brush.rng.uniform(3.2, 4.4) / count, 0.45, 0.22)
    for light in (0.86, 1.0)[brush.count(0, 1) :]:
        _ring(brush, count, 0.1, 1.0, petal, _shade(white, light))
    _disc(brush, brush.rng.uniform(0.24, 0.36), brush.pick(_YELLOW), 36)


def _dandelion(brush: _Brush) -> None:
    _stem(brush, 0.13, brush.count(0, 2), _leaf(0.35, 0.9, 0.7))
    if brush.rng.random() < 0.2:
        _seed_head(brush)
        return
    yellow = brush.pick(_YELLOW)
    for outer, count in zip((1.0, 0.82, 0.62, 0.42, 0.24), (34, 28, 24, 16, 10), strict=True):
        _ring(brush, count, 0.0, outer, _leaf(0.13, 0.9, 0.25), _shade(yellow, 1.04 - 0.24 * outer))


def _seed_head(brush: _Brush) -> None:
    """Draw the grey-white ball that a dandelion turns into."""
    grey = brush.pick(_GREY)
    for radius in (0.96, 0.7):
        brush.fill(_circle(radius), (*grey, 65))
    tips = _spiral(1.0, 70)
    tips = 0.95 * np.sin(np.pi / 2 * np.abs(tips)) / np.abs(tips) * tips  # crowded near the ball's outline
    star = _circle(0.13, 5)[[0, 2, 4, 1, 3, 0]]
    for tip, light in zip(tips, brush.rng.uniform(0.85, 1.1, 70), strict=True):
        brush.line(np.array([0.1 * tip, tip]), (*_shade(grey, 0.8), 150), 0.012)
        brush.line(tip + star, (*_shade(grey, light), 190), 0.012)
    brush.fill(_circle(0.13), brush.pick(_DARK), edge=0.72)


def _rose(brush: _Brush) -> None:
    _stem(brush, 0.15, brush.count(0, 3), _leaf(0.6, 0.7, 0.7))
    _ring(brush, 5, 0.3, 1.2, _leaf(0.4, 0.6, 1.0), brush.pick(_GREEN))
    colour, phase, around = brush.pick(_WARM), brush.rng.uniform(0, 2 * np.pi), np.linspace(0, 2 * np.pi, 18)
    for away, count in zip((0.52, 0.42, 0.32, 0.21, 0.11), (6, 5, 5, 4, 3), strict=True):
        size, phase = 0.06 + 0.85 * away, phase + brush.rng.uniform(0.4, 0.9)
        turns = np.exp(1j * (phase + 2 * np.pi * np.arange(count) / count))[:, None, None]
        blobs = size * (0.86 * np.cos(around) + 1j * brush.rng.uniform(1, 1.2, (count, 1)) * np.sin(around))
        layers = turns * (away + np.stack([1.08 * blobs, blobs, 0.88 * blobs - 0.1 * size], axis=1))
        lights = (0.72 + 0.5 * away) * brush.rng.uniform(0.94, 1.06, (count, 1)) * (0.5, 1.12, 0.93)
        brush.fill_each(layers.reshape(3 * count, -1), [_shade(colour, light) for light in lights.flat])
    along = np.linspace(0, 1, 24)
    brush.line(0.17 * along * np.exp(1j * (phase + 11 * along)), _shade(colour, 0.45), 0.03)


def _sunflower(brush: _Brush) -> None:
    _stem(brush, 0.17, brush.count(0, 2), _leaf(0.75, 0.5, 0.9))
    amber, dark, count = brush.pick(_AMBER), brush.pick(_DARK), brush.count(14, 23)
    radius, petal = brush.rng.uniform(0.4, 0.54), _leaf(brush.rng.uniform(4.4, 5.6) / count, 0.7, 0.85)
    _ring(brush, count, 0.7 * radius, 1.0, petal, _shade(amber, 0.8))
    _ring(brush, count, 0.7 * radius, 0.95, petal, amber)
    _disc(brush, radius, dark, 70)
    brush.fill(_circle(radius * brush.rng.uniform(0.3, 0.5)), (*_shade(dark, 0.7), 120))


def _tulip(brush: _Brush) -> None:
    _stem(brush, 0.16, brush.count(1, 3), _leaf(0.3, 0.6, 1.0) * 1.5)
    colour, spread = brush.pick(_TULIP), brush.rng.uniform(0.18, 0.34)
    inside = brush.pick(_TULIP) if brush.rng.random() < 0.3 else _shade(colour, 0.88)
    petal = _leaf(brush.rng.uniform(0.47, 0.58), 0.42, brush.rng.uniform(0.5, 0.8))
    leans, lights = (-0.5, 0.5, -1, 1, 0), (0.62, 0.66, 0.86, 0.92, 1.06)  # from the back to the front
    for lean, light in zip(leans, lights, strict=True):
        angle = lean * spread + brush.rng.uniform(-0.04, 0.04)
        turn = -1j * (1.82 + 0.16 * abs(lean)) * np.exp(1j * angle)
        brush.fill(0.9j + turn * petal, _shade(colour, light), edge=0.68)
        brush.fill(0.9j + turn * (0.75 * petal.real + 0.45j * petal.imag), _shade(inside, light))


_PAINTERS = dict(zip(KINDS, (_daisy, _dandelion, _rose, _sunflower, _tulip), strict=True))

# Grass, leaves, sky, soil, blurred: dark and bright colour; shape, size, number and opacity of objects.
_GROUNDS = (
    ((40, 85, 25), (135, 175, 75), _leaf(0.1, 0.3, 1.0), 0.5, 40, 170),
    ((20, 50, 28), (75, 120, 60), _leaf(0.5, 0.6, 0.9), 0.4, 16, 170),
    ((95, 150, 215), (215, 230, 242), _circle(1.0), 0.2, 4, 90),
    ((65, 45, 32), (150, 118, 88), _circle(1.0, 7), 0.03, 40, 90),
    ((50, 65, 60), (190, 170, 165), _circle(1.0), 0.14, 12, 90),
)


def _background(rng: np.random.Generator, size: int) -> Image.Image:
    """Draw blurred patches below blades, leaves, stones or light spots, `_OVERSAMPLE` times `size` wide."""
    dark, bright, shape, scale, count, opacity = _GROUNDS[rng.integers(len(_GROUNDS))]
    low, high, cells = np.array(dark), np.array(bright), int(rng.integers(2, 7))
    slope = rng.uniform(-0.4, 0.4) * np.linspace(-0.5, 0.5, cells)[:, None, None]
    mix = 0.2 + slope + 0.6 * rng.random((cells, cells, 1))
    patches = (low + (high - low) * mix + rng.normal(0, 9, (cells, cells, 3))).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(patches).resize((size, size), Image.Resampling.BICUBIC)
    image = image.resize((size * _OVERSAMPLE, size * _OVERSAMPLE), Image.Resampling.NEAREST)
    brush = _Brush(ImageDraw.Draw(image, "RGBA"), rng, 0j, float(image.width))
    for _ in range(count):
        turn = -1j * np.exp(1j * rng.normal(0, 0.35 if scale == 0.5 else 3))  # blades of grass stand upright
        point = complex(brush.rng.uniform(0, 1), brush.rng.uniform(0, 1.3))
        level = (low + (high - low) * brush.rng.uniform(-0.2, 1.2)).clip(0, 255).astype(int).tolist()
        brush.fill(point + scale * brush.rng.uniform(0.4, 1) * turn * shape, (*level, opacity))
    return image


def _add_light(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Apply brightness, a tint, a gradient of light and fine grain."""
    size = image.width
    across = np.linspace(-0.5, 0.5, size)
    slope = 1 + rng.uniform(-0.3, 0.3) * across[:, None, None] + rng.uniform(-0.3, 0.3) * across[:, None]
    tint = rng.uniform(0.82, 1.18) * rng.uniform(0.92, 1.08, 3)
    grain = rng.uniform(2, 14) * (rng.random((size, size, 1)) - 0.5)
    return Image.fromarray((np.asarray(image) * slope * tint + grain).clip(0, 255).astype(np.uint8))


def draw_flower(kind: str, seed: int, size: int = 96) -> Image.Image:
    """Draw one flower, or sometimes two, in front of a background.

    Args:
        kind: one of `KINDS`.
        seed: a number from 0 up; the same arguments always give the same picture.
        size: width and height in pixels; the scene is the same at every size.

    Returns:
        An RGB picture.

    Raises:
        ValueError: `kind` is none of `KINDS`, or `seed` is negative.

    >>> draw_flower("tulip", seed=0, size=64).size
    (64, 64)
    """
    if kind not in KINDS:
        raise ValueError(f"no kind of flower is called {kind!r}: choose one of {', '.join(KINDS)}")
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(KINDS.index(kind),))))
    image = _background(rng, size)
    draw = ImageDraw.Draw(image, "RGBA")
    radius, centre = rng.uniform(0.31, 0.47), complex(*rng.uniform(0.36, 0.64, 2))
    heads = [(centre, radius)]
    if rng.random() < 0.15:  # a smaller one behind it
        away = radius * rng.uniform(1.1, 1.6) * np.exp(1j * rng.uniform(0, 2 * np.pi))
        heads.insert(0, (centre + away, radius * rng.uniform(0.5, 0.9)))
    for middle, extent in heads:
        turn, tilt = np.exp(1j * rng.uniform(-0.45, 0.45)), rng.uniform(0.75, 1.0)
        _PAINTERS[kind](_Brush(draw, rng, image.width * middle, image.width * extent, turn, tilt))
    return _add_light(rng, image.reduce(_OVERSAMPLE))
