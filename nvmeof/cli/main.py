"""The ``nvmeof`` command: finds the command's module, runs it, and turns every exception into one line and a code."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import io
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from nvmeof.errors import (
    CheckpointNotFoundError,
    ConfigError,
    CorruptCheckpointError,
    NvmeofError,
    UncommittedError,
    UsageError,
)

COMMAND_MODULES = ("nvmeof.cli.serve", "nvmeof.cli.pool", "nvmeof.cli.inspect", "nvmeof.cli.nvme", "nvmeof.cli.ckpt")
"""Each has ``register(subparsers)``; its parsers set ``run``, a function from the arguments to the exit code."""

OK, CORRUPT, UNCOMMITTED, FAILED, NOT_FOUND, USAGE, INTERNAL, PIPE, INTERRUPTED = 0, 1, 2, 3, 10, 64, 70, 141, 130
DISTRIBUTION = "nvmeof-store"
DEBUG_VARIABLE = "NVMEOF_DEBUG"
LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)
EPILOG = f"""\
exit codes:
  {OK:3}  done
  {CORRUPT:3}  a checkpoint's stored bytes are not the bytes that were saved; a pool is degraded or was damaged
  {UNCOMMITTED:3}  a checkpoint was never committed
  {FAILED:3}  input/output error, or a status other than success from a controller
  {NOT_FOUND:3}  no such checkpoint, pool or file
  {USAGE:3}  wrong arguments or configuration
  {INTERNAL:3}  an error in nvmeof itself ({DEBUG_VARIABLE}=1 shows where)
  {INTERRUPTED:3}  interrupted
  {PIPE:3}  nobody reads standard output any more
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code; never raises."""
    _prepare_streams()
    try:
        code = _run(argv)
        sys.stdout.flush()
    except BaseException as error:
        return _fail(error)
    return code


def _prepare_streams() -> None:
    """Standard streams that take any file name, /dev/null in place of those that the caller closed.

    Otherwise a socket or a volume could get their number, and be written to.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run(argv: Sequence[str] | None) -> int:
    try:
        args = _parser().parse_args(argv)
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else OK
    logging.basicConfig(
        level=LEVELS[min(args.verbose, len(LEVELS) - 1)], format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    return int(args.run(args))


def exit_code(error: BaseException) -> int:
    """The code for an exception; the only place that knows."""
    match error:
        case CorruptCheckpointError():
            return CORRUPT
        case UncommittedError():
            return UNCOMMITTED
        case CheckpointNotFoundError() | FileNotFoundError():
            return NOT_FOUND
        case UsageError() | ConfigError():
            return USAGE
        case BrokenPipeError():
            return PIPE
        case NvmeofError() | OSError():
            return FAILED
        case KeyboardInterrupt():
            return INTERRUPTED
    return INTERNAL


def _fail(error: BaseException) -> int:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    code = exit_code(error)
    if code == PIPE:
        # Nobody reads on; nothing may be flushed into the pipe when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code
    if code == INTERNAL and os.environ.get(DEBUG_VARIABLE):
        raise error
    print(f"nvmeof: {message(error, code)}", file=sys.stderr)
    return code


def message(error: BaseException, code: int) -> str:
    """What is said of an exception, in one line."""
    if code == INTERRUPTED:
        return "interrupted"
    text = " ".join(str(error).split())
    if code == INTERNAL:
        return f"internal error: {type(error).__name__}: {text} ({DEBUG_VARIABLE}=1 shows where)"
    if isinstance(error, OSError) and error.strerror and not isinstance(error, NvmeofError):
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return text or type(error).__name__


class _Parser(argparse.ArgumentParser):
    """Refuses wrong arguments with an exception instead of usage lines and code 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        try:
            version = importlib.metadata.version(DISTRIBUTION)
        except importlib.metadata.PackageNotFoundError:
            version = "(not installed)"
        print(f"nvmeof {version}")
        parser.exit(OK)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="nvmeof",
        description="An NVMe/TCP target, initiator, storage pool and checkpoint store in user space.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and leave")
    parser.add_argument(
        "-v", "--verbose", action="count", default=0, help="log to standard error; twice: every refused command too"
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)
    for name in COMMAND_MODULES:
        if importlib.util.find_spec(name) is not None:
            importlib.import_module(name).register(subparsers)
    return parser


if __name__ == "__main__":
    sys.exit(main())
