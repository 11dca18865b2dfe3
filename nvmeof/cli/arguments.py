"""What command line options turn into."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

from nvmeof.errors import UsageError

T = TypeVar("T")


def argument(parse: Callable[[str], T]) -> Callable[[str], T]:
    """``parse`` for ``type=``: argparse shows the text of no exception but this."""

    def parsed(text: str) -> T:
        try:
            return parse(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed
