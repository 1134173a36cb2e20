"""Failures that a run record or the command line can name.

Every message says what was asked, what was found and what to do, on one line.
"""


class PeftbenchError(Exception):
    """A failure with a message meant for the user; shown without a traceback."""


class ConfigError(PeftbenchError):
    """The command line or a configuration file asks for something that does not exist."""


class UnknownName(ConfigError):
    """A name that no registry or configuration group holds."""


class DataError(PeftbenchError):
    """A data set that cannot be read as asked: missing root, empty class, broken image."""


class SplitRoleError(PeftbenchError):
    """A split used against its role, such as a test split read twice."""


class WeightsError(PeftbenchError):
    """Backbone weights that are missing, corrupt or of the wrong shape."""


class StoreError(PeftbenchError):
    """The results folder cannot be read or written."""


class DiskFull(StoreError):
    """A disk, a quota or a limit on file sizes leaves no room for what is to be written."""


class Unsupported(PeftbenchError):
    """A method x backbone pair that makes no sense; becomes a record with its reason."""


class NoEffect(PeftbenchError):
    """A method that touched nothing or whose parameters cannot change the output."""


class ActivationsChanged(PeftbenchError):
    """Training changed what a part of the network gives that was computed once."""


class NotMergeable(PeftbenchError):
    """A method whose change cannot be folded into the weights of the backbone."""


class Diverged(PeftbenchError):
    """Training produced a loss that is not finite."""
