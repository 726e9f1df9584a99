"""Every error a user can cause, each with the exit code of the command line.

A message is one sentence or two: what failed, the value received, what is allowed, what to do next.
"""


class ProtonmfError(Exception):
    """A failure that is not a bug: its text is shown to the user as it is."""

    exit_code = 3


class UsageError(ProtonmfError):
    """Words on the command line that do not fit together."""

    exit_code = 2


class InputError(ProtonmfError):
    """Data, an image, a checkpoint or a folder that cannot be used."""


class ModelFileError(InputError):
    """A prototype model file that is damaged, foreign or too new."""


class NotExactError(ProtonmfError):
    """A classifier whose logits could not be written exactly as a sum over rows."""

    exit_code = 4


class GateError(ProtonmfError):
    """A threshold given on the command line that was not met."""

    exit_code = 5
