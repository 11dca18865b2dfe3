"""Where the key of an encrypted pool comes from: four options, and what stands for them in a message."""

from __future__ import annotations

import argparse
import getpass
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from nvmeof.engine.disk import load_file
from nvmeof.errors import UsageError
from nvmeof.limits import PASSPHRASE_BYTES_MAX

if TYPE_CHECKING:
    from nvmeof.keys.sources import KeySource

FILE, PASSPHRASE, COMMAND = "file", "passphrase", "command"
Key: TypeAlias = tuple[str, str]
"""One of the three above, and the path, text or command line."""

ASK = ""
"""The file of a passphrase that is asked for."""


def add_key_options(parser: argparse.ArgumentParser, *, new: bool = False, create: bool = False) -> None:
    """The options; ``new``: of the key to change to."""
    prefix, which = ("--new-", "the new key") if new else ("--", "the key")
    group = parser.add_argument_group(which).add_mutually_exclusive_group()
    made = ", made if it is missing" if new or create else ""
    group.add_argument(f"{prefix}key-file", metavar="FILE", help=f"a file that only its owner can read{made}")
    group.add_argument(f"{prefix}passphrase", action="store_true", help="ask for a passphrase")
    group.add_argument(f"{prefix}passphrase-file", metavar="FILE", help="the first line of a file is the passphrase")
    group.add_argument(f"{prefix}key-command", metavar="COMMAND", help="a command that prints the key")
    if create:
        group.add_argument("--no-encryption", action="store_true", help="no key: whoever has the members has the data")


def has_key(args: argparse.Namespace) -> bool:
    """Whether the options name a key."""
    return args.passphrase or any(each is not None for each in (args.key_file, args.passphrase_file, args.key_command))


def key_of(args: argparse.Namespace, *, new: bool = False, twice: bool = False) -> Key | None:
    """What the options say; None when they say nothing. Asks for the passphrase. Raises UsageError."""
    prefix = "new_" if new else ""
    path, file, command = (
        getattr(args, f"{prefix}{name}", None) for name in ("key_file", "passphrase_file", "key_command")
    )
    if path is not None:
        return FILE, os.path.abspath(_named(path, f"--{prefix}key-file"))
    if command is not None:
        return COMMAND, _named(command, f"--{prefix}key-command")
    if file is not None:
        return PASSPHRASE, passphrase_from(Path(file))
    if getattr(args, f"{prefix}passphrase", False):
        return PASSPHRASE, ask_passphrase(twice=twice)
    return None


def source_of(key: Key | None) -> KeySource | None:
    """What the engine takes. Raises UsageError."""
    from nvmeof.keys.sources import KeyCommand, KeyFile, Passphrase

    if key is None:
        return None
    kind, value = key
    if kind == FILE:
        return KeyFile(Path(value))
    return Passphrase(value) if kind == PASSPHRASE else KeyCommand(value)


def make_key_file(key: Key | None, directory: Path) -> bool:
    """Make the key file if there is none; whether it was made. Raises UsageError, also for one beside the members."""
    from nvmeof.keys.sources import KeyFile

    if key is None or key[0] != FILE:
        return False
    path = Path(key[1])
    if Path(os.path.realpath(path.parent)) == Path(os.path.realpath(directory)):
        raise UsageError(f"{path}: the key would lie beside the data that it protects; want another directory")
    if os.path.lexists(path):
        return False
    KeyFile.create(path)
    return True


def passphrase_from(path: Path) -> str:
    """The first line of a file that nobody else can read. Raises UsageError."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # to open a pipe may take for ever
            raise ValueError("it is not a file")
        data = load_file(path, PASSPHRASE_BYTES_MAX)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{path}: the passphrase cannot be read: {reason}") from error
    if status.st_mode & 0o077:
        raise UsageError(f"{path}: others can read the passphrase (mode {status.st_mode & 0o777:04o}); want 0600")
    try:
        return _passphrase((data or b"").partition(b"\n")[0].removesuffix(b"\r").decode())
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: the passphrase is not UTF-8") from None


def ask_passphrase(*, twice: bool = False) -> str:
    """Ask on the terminal. Raises UsageError when there is none, or both answers differ."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        raise UsageError("--passphrase: there is no terminal to ask at, want --passphrase-file") from None
    try:
        text = _passphrase(getpass.getpass("Passphrase of the pool: "))
        if twice and getpass.getpass("Again: ") != text:
            raise UsageError("--passphrase: the two passphrases differ")
    except EOFError:
        raise UsageError("--passphrase: got none") from None
    return text


def _passphrase(text: str) -> str:
    if not text:
        raise UsageError("the passphrase is empty")
    if len(text.encode()) > PASSPHRASE_BYTES_MAX:
        raise UsageError(f"the passphrase has more than {PASSPHRASE_BYTES_MAX} bytes")
    return text


def _named(value: str, option: str) -> str:
    if not value or "\0" in value:
        raise UsageError(f"{option.replace('_', '-')}: got {value!r}, wanted a name")
    return value
