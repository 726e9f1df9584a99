"""Every error a user can cause, each with the exit code of the command line.

A message is one sentence or two: what failed, the value received, what is allowed, what to do next. It names options as
the command line has them; what Python shows names them as its arguments.
"""

import re

OPTION = re.compile(r"`[^`]*`|--([a-z]+(?:-[a-z]+)*)|(?<![\w-])-([op])\b")
"""A command in backticks, which stays, or an option."""
SHORT = {"o": "output", "p": "prototypes"}


def in_python(text: str) -> str:
    """Options of the command line as arguments of a call.

    >>> in_python("class A is larger than --memory: give --batch-size 8, or --no-stability.")
    'class A is larger than memory: give batch_size 8, or no_stability.'
    """

    def named(found: re.Match[str]) -> str:
        if found[2]:
            return SHORT[found[2]]
        return found[1].replace("-", "_") if found[1] else found[0]

    return OPTION.sub(named, text)


UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""Control characters, what Python has in the place of bytes that are not UTF-8, and what XML cannot hold."""
ESCAPES = {"\n": r"\n", "\t": r"\t", "\r": r"\r"}


def printable(text: str, keep: str = "") -> str:
    r"""A text that terminals, pages and records can hold: what they cannot is escaped as `ls` does.

    Args:
        text: perhaps a file's name, in which any byte may be.
        keep: control characters that stay.

    >>> printable("a\x1b[2J\udcff.png"), printable("\ufffe")
    ('a\\033[2J\\377.png', '\\357\\277\\276')
    """

    def escaped(found: re.Match[str]) -> str:
        char = found[0]
        if char in keep:
            return char
        try:
            raw = char.encode(errors="surrogateescape")
        except UnicodeEncodeError:  # a surrogate that stands for no byte
            raw = char.encode(errors="surrogatepass")
        return ESCAPES.get(char) or "".join(f"\\{byte:03o}" for byte in raw)

    return UNPRINTABLE.sub(escaped, text)


MOST_DIGITS = 18
"""Of a number that somebody counts to; Python refuses to read one of 4,301."""


def is_whole(text: str) -> bool:
    """Whether a text is a number of decimal digits alone, short enough for `int`.

    >>> is_whole("12"), is_whole("-1"), is_whole(""), is_whole("9" * 5000)
    (True, False, False, False)
    """
    return text.isdecimal() and len(text) <= MOST_DIGITS


def first_line(failure: Exception) -> str:
    """Of what an exception says, else its kind."""
    lines = str(failure).strip().splitlines()
    return lines[0][:300] if lines else type(failure).__name__


class ProtonmfError(Exception):
    """A failure that is not a bug: its text is shown to the user as it is."""

    exit_code = 3

    def __str__(self) -> str:
        return in_python(self.words)

    @property
    def words(self) -> str:
        """The message for the command line."""
        return printable(super().__str__(), keep="\n")


class UsageError(ProtonmfError):
    """Words on the command line, or arguments, that do not fit together."""

    exit_code = 2


class InputError(ProtonmfError):
    """Data, an image, a checkpoint or a folder that cannot be used."""


class ModelFileError(InputError):
    """A prototype model file that is damaged, foreign or too new."""


class NotExactError(ProtonmfError):
    """A classifier whose logits could not be written exactly as a sum over rows."""

    exit_code = 4


class GateError(ProtonmfError):
    """A threshold that was not met."""

    exit_code = 5


class PartialError(ProtonmfError):
    """Some images could not be used; what was asked for was done with the others."""

    exit_code = 6
