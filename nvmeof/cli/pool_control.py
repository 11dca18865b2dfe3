"""The control socket of a serving process: pool commands reach the pool that it has open.

``DIR/control`` is a Unix socket that only its owner and root can use. A connection carries one request, one line of
JSON: ``{"operation": NAME, "arguments": {...}}``. Lines of ``{"progress": [done, total]}`` may come back, then one of
``{"answer": {...}}`` or ``{"error": {"code": EXIT CODE, "message": TEXT}}``. Who hangs up ends what was waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import stat
import struct
from typing import Any

from nvmeof.cli.pool_directory import CONTROL_NAME, PoolDirectory
from nvmeof.cli.pool_operations import Answer, Arguments, perform
from nvmeof.cli.pool_session import Session
from nvmeof.cli.text import Progress
from nvmeof.errors import NvmeofError, UsageError
from nvmeof.limits import (
    CONTROL_BYTES_MAX,
    CONTROL_CONNECTIONS_MAX,
    CONTROL_PROGRESS_SECONDS,
    CONTROL_SECONDS,
)

log = logging.getLogger("nvmeof.pool")

_CREDENTIALS = struct.Struct("3i")
_MODE = 0o600


class ControlServer:
    """Answers at the socket until it is closed."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._server: asyncio.AbstractServer | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> ControlServer:
        """Raises UsageError when the name is taken by something else, OSError."""
        sock = _bound(self._session.directory)
        self._server = await asyncio.start_unix_server(self._connected, sock=sock, limit=CONTROL_BYTES_MAX)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        with contextlib.suppress(OSError):
            os.unlink(CONTROL_NAME, dir_fd=self._session.directory.fd)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._converse(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # whoever asked is gone, or we are ending: streams would make a noise of it
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not _is_welcome(writer):
            return
        if len(self._tasks) > CONTROL_CONNECTIONS_MAX:
            busy = f"the serving process has {CONTROL_CONNECTIONS_MAX} commands to do already; try again later"
            await _send(writer, _error(NvmeofError(busy)))
            return
        try:
            name, arguments = await asyncio.wait_for(_request(reader), CONTROL_SECONDS)
            work = asyncio.ensure_future(perform(self._session, name, arguments, _teller(writer)))
            answer: dict[str, Any] = {"answer": await _unless_gone(work, reader)}
        except asyncio.CancelledError:
            await _send(writer, _error(NvmeofError("the serving process is ending")))
            raise
        except Exception as error:
            answer = _error(error)
        await _send(writer, answer)


def _is_welcome(writer: asyncio.StreamWriter) -> bool:
    """The file's mode lets nobody else in; this holds also where a file system keeps no modes."""
    peer = writer.get_extra_info("socket")
    _, uid, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return uid in _owners()


def _owners() -> set[int]:
    return {0, os.geteuid()}


async def _request(reader: asyncio.StreamReader) -> tuple[str, Arguments]:
    try:
        request = json.loads(await reader.readline())
    except (ValueError, RecursionError):
        request = None
    match request:
        case {"operation": str(name), "arguments": dict(arguments)}:
            return name, arguments
    raise UsageError('control: got something else, wanted {"operation": NAME, "arguments": {}} and no more than 1 MiB')


async def _unless_gone(work: asyncio.Future[Answer], reader: asyncio.StreamReader) -> Answer:
    """The result of ``work``, which is cancelled when nobody waits for it any more."""
    gone = asyncio.ensure_future(reader.read(1))
    waiting: set[asyncio.Future[Any]] = {work, gone}
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not work.done():
            work.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)
    if work.cancelled():
        raise ConnectionResetError
    return work.result()


def _teller(writer: asyncio.StreamWriter) -> Progress:
    loop = asyncio.get_running_loop()
    due = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal due
        transport = writer.transport
        if loop.time() >= due and not transport.is_closing() and not transport.get_write_buffer_size():
            due = loop.time() + CONTROL_PROGRESS_SECONDS
            writer.write(_line({"progress": [done, total]}))

    return tell


def _error(error: Exception) -> dict[str, Any]:
    from nvmeof.cli.main import FAILED, INTERNAL, exit_code, message

    code = exit_code(error)
    if code == INTERNAL:
        log.error("control: %r", error, exc_info=error)
        return {"error": {"code": FAILED, "message": f"internal error in the serving process: {error!r}"}}
    return {"error": {"code": code, "message": message(error, code)}}


async def _send(writer: asyncio.StreamWriter, answer: dict[str, Any]) -> None:
    line = _line(answer)
    if len(line) > CONTROL_BYTES_MAX:
        line = _line(_error(NvmeofError(f"the answer has {len(line)} bytes, more than {CONTROL_BYTES_MAX}")))
    if writer.transport.is_closing():
        return  # nobody is there; uvloop would raise
    writer.write(line)
    with contextlib.suppress(TimeoutError, OSError):
        await asyncio.wait_for(writer.drain(), CONTROL_SECONDS)


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def _address(directory: PoolDirectory) -> str:
    """Short whatever the directory's path is: a socket's name has 107 bytes at most."""
    return f"/proc/self/fd/{directory.fd}/{CONTROL_NAME}"


def _bound(directory: PoolDirectory) -> socket.socket:
    """A socket that only its owner can connect to, from the moment it has a name. The directory is locked."""
    place = directory.path / CONTROL_NAME
    try:
        if not stat.S_ISSOCK(os.stat(CONTROL_NAME, dir_fd=directory.fd, follow_symlinks=False).st_mode):
            raise UsageError(f"{place}: is in the way; the control socket of the pool must be there")
        os.unlink(CONTROL_NAME, dir_fd=directory.fd)  # of a process that did not end well: we have the lock
    except FileNotFoundError:
        pass
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        os.fchmod(sock.fileno(), _MODE)  # what bind gives the file
        sock.bind(_address(directory))
        os.chmod(CONTROL_NAME, _MODE, dir_fd=directory.fd)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            raise UsageError(f"{place}: the control socket cannot be made: {error.strerror}") from error
        raise
    return sock


# --- the other end ----------------------------------------------------------------------------------------------------


def connect(directory: PoolDirectory) -> socket.socket | None:
    """A connection to the process that serves the pool; None when nobody does. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.connect(_address(directory))
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except OSError as error:
        sock.close()
        raise OSError(error.errno, error.strerror, str(directory.path / CONTROL_NAME)) from error
    return sock


async def ask(sock: socket.socket, name: str, arguments: Arguments, progress: Progress | None) -> Answer:
    """Have an operation done by the serving process. Raises UsageError, NvmeofError."""
    from nvmeof.cli.main import USAGE

    reader, writer = await asyncio.open_unix_connection(sock=sock, limit=2 * CONTROL_BYTES_MAX)
    try:
        writer.write(_line({"operation": name, "arguments": dict(arguments)}))
        while line := await asyncio.wait_for(reader.readline(), CONTROL_SECONDS if name == "status" else None):
            match json.loads(line):
                case {"progress": [int(done), int(total)]} if progress is not None:
                    progress(done, total)
                case {"answer": dict(answer)}:
                    return answer
                case {"error": {"code": int(code), "message": str(text)}}:
                    raise UsageError(text) if code == USAGE else NvmeofError(text)
    except TimeoutError:
        raise NvmeofError(f"the serving process gave no answer in {CONTROL_SECONDS:g} s: is it stopped?") from None
    except (ValueError, OSError) as error:
        if isinstance(error, NvmeofError):
            raise
        raise NvmeofError(f"the serving process gave no proper answer: {error}") from error
    finally:
        writer.close()
    raise NvmeofError("the serving process ended before it answered")
