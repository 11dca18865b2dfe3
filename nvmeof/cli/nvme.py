"""nvme-cli's commands for people's fingers, on a URL instead of a device."""

from __future__ import annotations

from nvmeof.cli import nvme_discover, nvme_features, nvme_identify, nvme_io, nvme_logs
from nvmeof.cli.nvme_session import Subparsers


def register(subparsers: Subparsers) -> None:
    """Add every nvme-like command. Each sets ``run``, a function from the parsed arguments to the exit code."""
    nvme_discover.register(subparsers)
    nvme_identify.register(subparsers)
    nvme_logs.register(subparsers)
    nvme_features.register(subparsers)
    nvme_io.register(subparsers)
