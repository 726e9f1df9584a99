"""Names on a page that is sent to others: no folder of whoever made it."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from protonmf_cli.models.page import AuditPart, Case, PageWords, Report

ABSOLUTE = re.compile(
    r"""(?<![\w./~\\])(?:file://)?(?:~?(?:/[^/\s'"<>|,;:()]+){2,}|[A-Za-z]:\\[^\s'"<>|,;:()]+)[/\\]?"""
)
"""A path from the root, from a home folder or from a drive, in a text; not what follows the host of an address."""


def mailed(report: Report) -> Report:
    """The same report under names that say nothing of the folders it was made from.

    The model and the words of an audit's command keep the last part of their paths, images the part that tells them
    apart; paths relative to the data, or to where the command ran, stay.
    """
    images = [case.image for case in report.cases] + [skip.path for skip in report.unreadable]
    names = short_names(images)
    return replace(
        report,
        file=last_part(report.file),
        cases=tuple(_renamed(case, names[case.image]) for case in report.cases),
        unreadable=tuple(replace(skip, path=names[skip.path]) for skip in report.unreadable),
        audit=None if report.audit is None else _mailed_audit(report.audit),
    )


def mailed_words(words: PageWords, report: Report) -> PageWords:
    """Texts without folders.

    Args:
        words: of a page.
        report: as it was made, whose paths are known even where they hold spaces.
    """
    card = report.model.card
    sources = [each.source.name.partition(":")[2] or each.source.name for each in (card, *card.members)]
    known = sorted({path for path in (report.file, *sources) if is_private(path)}, key=len, reverse=True)

    def clean(text: str) -> str:
        for path in known:
            text = text.replace(path, last_part(path))
        return without_folders(text)

    cleaned: PageWords = _changed(words, clean)
    return cleaned


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Of each path that leads through folders of its owner, as much of its end as no other one has; others stay.

    >>> list(short_names(["/home/me/a/1.jpg", "/home/me/b/1.jpg", "../c/2.jpg", "val/3.jpg"]).values())
    ['a/1.jpg', 'b/1.jpg', '2.jpg', 'val/3.jpg']
    """
    private = {path: _parts(path) for path in dict.fromkeys(paths) if is_private(path)}
    found = {path: path for path in paths if path not in private}
    found |= {path: parts[-1] for path, parts in private.items()}
    for length in range(1, max(map(len, private.values()), default=0) + 1):
        tails = {path: "/".join(parts[-length:]) for path, parts in private.items()}
        counts = Counter(tails.values())
        alone = [path for path, tail in tails.items() if counts[tail] == 1]
        for path in alone:
            found[path] = tails[path]
            del private[path]
    return {path: found[path] for path in paths}


def is_private(path: str) -> bool:
    """Whether a path starts at the root, a home folder or a drive, or goes up.

    >>> [is_private(path) for path in ("/a/b.jpg", "~/b.jpg", "../b.jpg", "C:\\\\b.jpg", "a/b.jpg", "https://a.b/c")]
    [True, True, True, True, False, False]
    """
    return path.startswith(("/", "~")) or ".." in _parts(path) or bool(PureWindowsPath(path).drive)


def last_part(path: str) -> str:
    """Of a private path its last part; another one as it is."""
    return _parts(path)[-1] if is_private(path) and _parts(path) else path


def without_folders(text: str) -> str:
    """A text with nothing but the last part of each path.

    >>> without_folders("local-dir:/home/me/net (resnet18), 1/2 of https://a.b/c and /data/x.zip: 3")
    'local-dir:net (resnet18), 1/2 of https://a.b/c and x.zip: 3'
    """
    return ABSOLUTE.sub(lambda found: last_part(found[0].removeprefix("file://")), text)


def _parts(path: str) -> tuple[str, ...]:
    pure = PureWindowsPath(path) if PureWindowsPath(path).drive else PurePosixPath(path)
    return tuple(part for part in pure.parts if part != pure.anchor)


def _renamed(case: Case, name: str) -> Case:
    return replace(case, explanations=tuple(replace(each, image=name) for each in case.explanations))


def _mailed_audit(part: AuditPart) -> AuditPart:
    audit = replace(part.audit, notes=tuple(map(without_folders, part.audit.notes)))
    return replace(part, audit=audit, data=tuple(map(last_part, part.data)))


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """The same with every text in it changed, however deep."""
    if isinstance(value, str):
        return change(value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _changed(getattr(value, f.name), change) for f in fields(value)})
    if isinstance(value, Mapping):
        return {key: _changed(each, change) for key, each in value.items()}
    if isinstance(value, Iterable):
        return tuple(_changed(each, change) for each in value)
    return value
