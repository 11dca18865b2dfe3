"""Where in the submission queue entry a parameter is wrong, and the two refusals that need it most."""

from __future__ import annotations

from nvmeof.spec.status import DNR, Status
from nvmeof.target.command import CommandError

OPCODE, FLAGS, CID, NSID = 0, 1, 2, 4
SGL, SGL_LENGTH = 24, 32
CDW10, CDW11, CDW12, CDW14 = 40, 44, 48, 56


def invalid_field(byte: int, bit: int = 0) -> CommandError:
    """Invalid Field in Command, pointing at bit ``bit`` of byte ``byte``."""
    return CommandError(Status.INVALID_FIELD | DNR, location=byte | bit << 8)


def invalid_namespace() -> CommandError:
    """Invalid Namespace or Format."""
    return CommandError(Status.INVALID_NAMESPACE_OR_FORMAT | DNR, location=NSID)
