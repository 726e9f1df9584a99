"""Whether the hub is asked: without a network it would try for a minute before it takes what is on this machine."""

import os
import socket
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.error import URLError

from huggingface_hub import constants, errors

UNREACHABLE = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError, URLError)
"""What libraries and the hub raise where weights are not here and cannot be fetched."""
NOT_THERE = (errors.RepositoryNotFoundError, errors.EntryNotFoundError, errors.GatedRepoError)


@contextmanager
def hub_asked(wanted: bool) -> Iterator[bool]:
    """Within it the hub is asked if that is wanted and it answers, else it gives what is on this machine alone."""
    asked, before = wanted and hub_answers(), constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not asked
    try:
        yield asked
    finally:
        constants.HF_HUB_OFFLINE = before


def hub_answers() -> bool:
    """Whether the hub, or a proxy that may know it, answers."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    address = urllib.parse.urlsplit(constants.ENDPOINT)
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), timeout=3).close()
    except OSError:
        return False
    return True
