"""JSON of a file that anybody may have written: finite numbers of usual size, text, and no endless nesting."""

import json
import math
import re
from collections.abc import Iterable
from typing import Any, NoReturn

MOST_DEPTH = 32
"""Of lists and objects inside each other."""
MOST_DIGITS = 19
"""Of a whole number: more do not fit 64 bits."""
HALF_OF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
"""Of surrogates, as it is escaped: alone it stands for no letter."""


def strict_json(text: str) -> Any:
    """The value of a text.

    Raises:
        ValueError: it is no JSON, or holds a number that is not finite or beyond 64 bits, half a letter, or lists
            nested deeper than `MOST_DEPTH`.
    """
    try:
        value = json.loads(text, parse_constant=_refused, parse_float=_finite, parse_int=_whole)
    except RecursionError as failure:
        raise ValueError("its JSON is nested too deeply") from failure
    _check_depth(value)
    if HALF_OF_A_PAIR.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as failure:
            raise ValueError("a text of its JSON holds half a letter") from failure
    return value


def _refused(word: str) -> NoReturn:
    raise ValueError(f"its JSON holds {word}, which is no finite number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        _refused(digits)
    return value


def _whole(digits: str) -> int:
    if len(digits.lstrip("-")) > MOST_DIGITS:
        raise ValueError(f"its JSON holds a number of {len(digits)} digits")
    return int(digits)


def _check_depth(value: Any) -> None:
    level: list[Any] = [value]
    for _ in range(MOST_DEPTH):
        level = [part for each in level if isinstance(each, dict | list) for part in _parts(each)]
        if not level:
            return
    raise ValueError("its JSON is nested too deeply")


def _parts(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return (part for part in (value.values() if isinstance(value, dict) else value) if isinstance(part, dict | list))
