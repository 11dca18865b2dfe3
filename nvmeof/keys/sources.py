"""Where the key-encryption key (KEK, 32 bytes) comes from: a file, a passphrase, or a command that asks a KMS.

No message and no repr shows a byte of a key, nor what a command or a file gave in its place.
"""

from __future__ import annotations

import os
import secrets
import selectors
import shlex
import signal
import stat
import subprocess
import time
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from nvmeof.errors import UsageError

KEK_BYTES = 32
KEY_TEXT_BYTES_MAX = 2 * KEK_BYTES + 2
"""64 hex digits and a line end."""

COMMAND_SECONDS = 30.0
"""A KMS across the world answers in seconds; a command that waits for a terminal never does."""

COMMAND_BYTES_MAX = 4096
"""Of what a command prints, and of the end of its complaints: one that never stops must not fill our memory."""

SCRYPT_N, SCRYPT_R, SCRYPT_P = 1 << 15, 8, 1
"""32 MiB and 0.1 s for each guess; OWASP's least for interactive use is 2**17 or, at less memory, 2**15 with p=3, and
pool passphrases are longer than a login's."""

SCRYPT_N_MAX, SCRYPT_R_MAX, SCRYPT_P_MAX = 1 << 20, 16, 16
SCRYPT_MEMORY_MAX = 1 << 30
"""What a key table may ask for: 128 * n * r bytes, p times the work. More is an attack on whoever opens the pool."""

SALT_BYTES = 16
SALT_BYTES_MAX = 64

Kdf = Mapping[str, object]
"""As it stands in a key table: ``name`` none or scrypt, and for scrypt salt (hex), n, r, p."""


class KeySource(ABC):
    """Gives the KEK. ``kind`` says in an error which source it was: "key file /etc/pool.key"."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """For messages; nothing secret."""

    @abstractmethod
    def kek(self, kdf: Kdf) -> bytes:
        """The 32 bytes. ``kdf`` is the table's. May block for seconds. UsageError says what to do."""

    @abstractmethod
    def new_kdf(self) -> dict[str, object]:
        """How the KEK of a new table is to be derived from this source."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class _GivenKey(KeySource):
    """A source that holds the KEK itself, so that nothing is derived."""

    def new_kdf(self) -> dict[str, object]:
        return {"name": "none"}

    def kek(self, kdf: Kdf) -> bytes:
        if kdf.get("name") != "none":
            raise UsageError(f"wrong key: this pool is locked with a passphrase, not with a {self.kind}")
        return self._given()

    @abstractmethod
    def _given(self) -> bytes:
        """The 32 bytes."""


def _parse(text: bytes, origin: str) -> bytes:
    """32 raw bytes, or 64 hex digits with at most a line end behind them."""
    if len(text) == KEK_BYTES:
        return text
    digits = text.removesuffix(b"\n").removesuffix(b"\r")
    if len(digits) == 2 * KEK_BYTES:
        try:
            return bytes.fromhex(digits.decode("ascii"))
        except ValueError:
            pass
    raise UsageError(f"{origin} gives {len(text)} bytes that are no key; wanted: 32 raw bytes or 64 hex digits")


class KeyFile(_GivenKey):
    """A file, or a symbolic link to one, that only its owner, who is us, can read: mode 0600 or 0400."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    @property
    def kind(self) -> str:
        return f"key file {self._path}"

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> KeyFile:
        """Make ``path`` with a new key: 64 hex digits, mode 0600, on media when this returns. Never overwrites."""
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise UsageError(f"key file {path} exists already; name another, or remove it if no pool uses it") from None
        except OSError as error:
            raise UsageError(f"key file {path} cannot be made: {error.strerror}") from None
        try:
            with open(descriptor, "wb") as file:
                os.fchmod(descriptor, 0o600)
                file.write(secrets.token_hex(KEK_BYTES).encode() + b"\n")
                file.flush()
                os.fsync(descriptor)
            _sync_directory(Path(path).parent)
        except OSError as error:
            raise UsageError(f"key file {path} cannot be written: {error.strerror}; remove it") from None
        return cls(path)

    def _given(self) -> bytes:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(f"{self.kind} cannot be read: {error.strerror}") from None
        try:
            self._check(os.fstat(descriptor))
            text = os.read(descriptor, KEY_TEXT_BYTES_MAX + 1)
        except OSError as error:
            raise UsageError(f"{self.kind} cannot be read: {error.strerror}") from None
        finally:
            os.close(descriptor)
        return _parse(text, self.kind)

    def _check(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{self.kind} is not a file")
        if status.st_uid != os.geteuid():
            raise UsageError(
                f"{self.kind} belongs to user {status.st_uid}, not to user {os.geteuid()} who runs this; chown it"
            )
        mode = stat.S_IMODE(status.st_mode)
        if mode not in (0o600, 0o400):
            raise UsageError(f"{self.kind} has mode {mode:04o}, others may read it; chmod 600 it")


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class KeyCommand(_GivenKey):
    """A command whose standard output is the key: a string for the shell, or a program with its arguments."""

    def __init__(self, command: str | Sequence[str], *, seconds_max: float = COMMAND_SECONDS) -> None:
        if not command:
            raise UsageError("the key command is empty")
        self._command = command if isinstance(command, str) else tuple(command)
        self._seconds_max = seconds_max

    @property
    def kind(self) -> str:
        text = self._command if isinstance(self._command, str) else shlex.join(self._command)
        return f"key command {text!r}"

    def _given(self) -> bytes:
        try:
            process = subprocess.Popen(
                self._command,
                shell=isinstance(self._command, str),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise UsageError(f"{self.kind} cannot be run: {error.strerror}") from None
        with process:
            try:
                output, complaints = _collected(process, self._seconds_max)
            except subprocess.TimeoutExpired:
                raise UsageError(f"{self.kind} gave no key within {self._seconds_max:g} s; run it by hand") from None
            finally:
                _end_group(process)
        if len(output) > COMMAND_BYTES_MAX:
            raise UsageError(
                f"{self.kind} gives more than {COMMAND_BYTES_MAX} bytes; wanted: 32 raw bytes or 64 hex digits"
            )
        if process.returncode:
            lines = complaints.decode(errors="replace").strip().splitlines()
            said = f": {lines[-1][:200]}" if lines else ""
            raise UsageError(f"{self.kind} failed with exit status {process.returncode}{said}")
        return _parse(output, self.kind)


def _collected(process: subprocess.Popen[bytes], seconds_max: float) -> tuple[bytes, bytes]:
    """What it prints, and the end of its complaints. Returns early when it prints too much. Raises TimeoutExpired."""
    assert process.stdout is not None
    assert process.stderr is not None
    deadline = time.monotonic() + seconds_max
    output, complaints = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, output)
        selector.register(process.stderr, selectors.EVENT_READ, complaints)
        while selector.get_map() and len(output) <= COMMAND_BYTES_MAX:
            remaining = deadline - time.monotonic()
            ready = selector.select(remaining) if remaining > 0 else []
            if not ready:
                raise subprocess.TimeoutExpired(process.args, seconds_max)
            for key, _ in ready:
                data = os.read(key.fd, COMMAND_BYTES_MAX)
                key.data.extend(data)
                if not data:
                    selector.unregister(key.fileobj)
            del complaints[:-COMMAND_BYTES_MAX]
    if len(output) <= COMMAND_BYTES_MAX:
        process.wait(max(0.0, deadline - time.monotonic()))
    return bytes(output), bytes(complaints)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the command and what it started: a child left behind would hold its pipes, and us, for ever."""
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Passphrase(KeySource):
    """Text that scrypt (RFC 7914) turns into the KEK. ``n`` is the cost of tables made with it; tests use less."""

    def __init__(self, text: str, *, n: int = SCRYPT_N) -> None:
        if not text:
            raise UsageError("the passphrase is empty")
        try:
            self._text = unicodedata.normalize("NFC", text).encode()
        except UnicodeEncodeError:
            raise UsageError("the passphrase is not text that UTF-8 can express") from None
        self._n = n

    @property
    def kind(self) -> str:
        return "passphrase"

    def new_kdf(self) -> dict[str, object]:
        salt = secrets.token_hex(SALT_BYTES)
        kdf: dict[str, object] = {"name": "scrypt", "salt": salt, "n": self._n, "r": SCRYPT_R, "p": SCRYPT_P}
        check_kdf(kdf)
        return kdf

    def kek(self, kdf: Kdf) -> bytes:
        if kdf.get("name") != "scrypt":
            raise UsageError("wrong key: this pool is locked with a key file or a key command, not with a passphrase")
        check_kdf(kdf)
        n, r, p = (int(str(kdf[name])) for name in "nrp")
        derive = Scrypt(salt=bytes.fromhex(str(kdf["salt"])), length=KEK_BYTES, n=n, r=r, p=p)
        return derive.derive(self._text)


def check_kdf(kdf: Kdf) -> None:
    """UsageError unless ``kdf``, which comes from media, is one of ours and within bounds."""
    name = kdf.get("name")
    if name == "none" and len(kdf) == 1:
        return
    if name != "scrypt" or set(kdf) != {"name", "salt", "n", "r", "p"}:
        raise UsageError("the key table derives its key in a way that is not known; is there a newer version?")
    n, r, p, salt = kdf["n"], kdf["r"], kdf["p"], kdf["salt"]
    if not (
        type(n) is int
        and type(r) is int
        and type(p) is int
        and 2 <= n <= SCRYPT_N_MAX
        and n & (n - 1) == 0
        and 1 <= r <= SCRYPT_R_MAX
        and 1 <= p <= SCRYPT_P_MAX
        and 128 * n * r <= SCRYPT_MEMORY_MAX
    ):
        raise UsageError("the key table asks scrypt for more than is allowed: it is damaged or forged")
    if not isinstance(salt, str) or not _is_hex(salt, SALT_BYTES, SALT_BYTES_MAX):
        raise UsageError("the key table's salt is not acceptable: it is damaged or forged")


def _is_hex(text: str, bytes_min: int, bytes_max: int) -> bool:
    return 2 * bytes_min <= len(text) <= 2 * bytes_max and len(text) % 2 == 0 and set(text) <= set("0123456789abcdef")
