"""Training patches in a model file: JPEG files of the size that the network reads, as their heads say."""

import numpy as np

from protonmf_cli.models.evidence import NearestPatch
from protonmf_cli.models.prototype import PrototypeModel

START = b"\xff\xd8\xff"
FRAMES = frozenset((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF))
"""Markers of the segment that says how large a picture is."""
FRAME = 5
"""Bytes of that segment before height and width, of two bytes each."""
ALONE = frozenset((0x01, *range(0xD0, 0xD8)))
"""Markers without a segment."""
AT_ONCE = 4096
"""Pictures that are looked at together: those of one program begin alike."""


def check_pictures(model: PrototypeModel) -> None:
    """Refuse training patches that are no JPEG files, or of another size than what the network reads.

    Raises:
        ValueError: saying which one.
    """
    examples, cards = model.examples, model.card.members or (model.card,)
    if not len(examples.crop):
        return
    jpeg, spans = examples.jpeg.numpy(), examples.crop.numpy()
    if (spans[:, 0] >= spans[:, 1]).any():
        raise ValueError("a training patch has no picture")
    member = model.evidence.member if isinstance(model.evidence, NearestPatch) else None
    networks = np.zeros(len(spans), np.int64) if member is None else member[examples.prototype].numpy()
    sizes = np.array([card.preprocessing.input_size[1:] for card in cards])[networks]
    found = _sizes(jpeg, spans)
    if (wrong := (found != sizes).any(axis=1)).any():
        first = int(wrong.argmax())
        height, width = found[first].tolist()
        what = f"is a picture of {width} x {height} pixels" if height else "is no JPEG file"
        raise ValueError(f"training patch {first} {what}, and the network reads {sizes[first][1]} x {sizes[first][0]}")


def _sizes(jpeg: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """(M, 2) height and width of pictures; zeros of what is none."""
    found = np.zeros((len(spans), 2), dtype=np.int64)
    at = _frame(jpeg[spans[0, 0] : spans[0, 1]].tobytes())
    first = jpeg[spans[0, 0] : spans[0, 0] + at + FRAME]
    for begin in range(0, len(spans), AT_ONCE):
        some, sizes = spans[begin : begin + AT_ONCE], found[begin : begin + AT_ONCE]
        alike = some[:, 1] - some[:, 0] >= len(first) + 4
        heads = jpeg[some[alike, :1] + np.arange(len(first) + 4)]
        equal = (heads[:, : len(first)] == first).all(axis=1) if at else np.zeros(len(heads), dtype=bool)
        alike[alike] = equal
        own = heads[equal, len(first) :].astype(np.int64)
        sizes[alike] = own[:, [0, 2]] * 256 + own[:, [1, 3]]
        for n in np.flatnonzero(~alike).tolist():  # of another program
            content = jpeg[some[n, 0] : some[n, 1]].tobytes()
            if place := _frame(content):
                sizes[n] = [int.from_bytes(content[place + k : place + k + 2]) for k in (FRAME, FRAME + 2)]
    return found


def _frame(content: bytes) -> int:
    """Where the segment begins that says how large a picture is; zero where there is none."""
    if not content.startswith(START):
        return 0
    place = 2
    while place + FRAME + 4 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker in FRAMES:
            return place
        if marker == 0xFF:
            place += 1
        elif marker in ALONE:
            place += 2
        else:
            place += 2 + max(2, int.from_bytes(content[place + 2 : place + 4]))
    return 0
