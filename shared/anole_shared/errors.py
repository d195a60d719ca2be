"""The root of Anole's errors, and the families that several services raise.

    AnoleError
    +-- ConfigurationError        the operator must change a setting or a file
    +-- MessageError              bytes on the bus that are no message of ours
    +-- BusError
    |   +-- BusUnavailable        no connection to the broker
    |   +-- QueueFull             the queue refused the message: it is at its limit
    |   +-- Unroutable            no such queue: its consumer is gone
    +-- StoreUnavailable          no connection to the store

An error's message says what is wrong and what to do about it. HTTP statuses are the gateway's own.
"""


class AnoleError(Exception):
    """Anything that Anole itself finds wrong."""

    retryable: bool = False
    """Whether the very same call can succeed later."""


class ConfigurationError(AnoleError):
    """A setting or a file that the operator must mend; the service does not start."""


class MessageError(AnoleError):
    """Bytes on the bus that are no message of this version."""


class BusError(AnoleError):
    """A message could not be handed over."""

    retryable = True


class BusUnavailable(BusError):
    """There is no connection to the broker."""


class QueueFull(BusError):
    """The queue is at its limit and refused the message."""


class Unroutable(BusError):
    """No such queue exists: whoever consumed it is gone."""

    retryable = False


class StoreUnavailable(AnoleError):
    """There is no connection to the store."""

    retryable = True
