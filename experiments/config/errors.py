"""Errors: what a user can cause ends in one sentence on standard error, and exit status 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import InstantiationException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from ..interruption import NOTHING, goes_on_with

__all__ = ["ConfigurationError", "plain_errors"]


class ConfigurationError(ValueError):
    """A configuration that cannot be, explained in one sentence."""


PLAIN = (
    ValueError,
    TypeError,
    LookupError,
    OSError,
    FloatingPointError,  # a fit that is no longer finite
    InstantiationException,
    OmegaConfBaseException,
)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn what a user can cause into one sentence on standard error and exit status 2.

    HYDRA_FULL_ERROR=1 in the environment shows the traceback instead.
    """
    try:
        with goes_on_with(NOTHING):
            yield
    except PLAIN as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        cause: BaseException = error
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, MissingMandatoryValue):
            name = str(cause.full_key)
            cause = ConfigurationError(f"{name} has no default and was not given; add {name}=… to the command.")
        text = str(cause.args[0]) if isinstance(cause, KeyError) and cause.args else str(cause)
        print(f"pyro-tvae: {' '.join(text.split())}", file=sys.stderr)
        raise SystemExit(2) from None
