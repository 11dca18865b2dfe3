"""Debian kernels and a root for them to run in, unpacked into a cache: nothing is installed and no privilege is needed.

Cached entries appear by rename, so an interrupted build leaves only rubbish that the next one sweeps away.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import lzma
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nvmeof-tests"
UNUSED_DAYS_MAX = 14
SEARCH_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
TOOLS = ("busybox", "dash", "nvme", "fio", "mkfs.ext4", "fsck.ext4", "blkdiscard", "losetup", "flock")
MODULES = (
    *("virtio_pci", "virtio_net", "virtio_console", "virtio_rng", "crc32c_intel"),
    *("nvme_fabrics", "nvme_tcp", "nvmet", "nvmet_tcp", "configfs", "loop"),
)
INIT = Path(__file__).with_name("init.sh")


class Unavailable(Exception):
    """This machine lacks something that the kernel tests need; the message says what."""


class Boot(NamedTuple):
    release: str
    vmlinuz: Path
    initramfs: Path


def boot_files(series: str) -> Boot:
    """The newest Debian cloud kernel of a series ("6.1", "6.12") and an initramfs made for it."""
    if platform.machine() != "x86_64":
        raise Unavailable("the guests run this machine's own x86-64 tools")
    tools = {name: find_tool(name) for name in TOOLS}
    CACHE.mkdir(parents=True, exist_ok=True)
    with _locked():
        tree = _kernel_tree(series)
        release = next((tree / "lib/modules").iterdir()).name
        initramfs = _cached(
            f"initramfs-{release}-{_fingerprint(tools)}", lambda path: _build_initramfs(path, tree, release, tools)
        )
    return Boot(release, tree / f"boot/vmlinuz-{release}", initramfs)


def find_tool(name: str) -> Path:
    found = shutil.which(name, path=SEARCH_PATH)
    if found is None:
        raise Unavailable(f"{name} is not installed (tests/kernel/packages.txt lists the packages)")
    return Path(found)


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for entry in CACHE.iterdir():
            unused_s = time.time() - entry.stat().st_mtime
            if entry.name.startswith("building-") or unused_s > UNUSED_DAYS_MAX * 86400:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        yield


def _cached(name: str, build: Callable[[Path], None]) -> Path:
    entry = CACHE / name
    if not entry.exists():
        scratch = Path(tempfile.mkdtemp(prefix="building-", dir=CACHE))
        build(scratch / name)
        (scratch / name).rename(entry)
        shutil.rmtree(scratch)
    os.utime(entry)
    return entry


def _kernel_tree(series: str) -> Path:
    prefix = f"linux-image-{series}."
    known = [line.split()[0] for line in _output("apt-cache", "search", "--names-only", "^linux-image-").splitlines()]
    known += [path.name for path in CACHE.iterdir()]
    candidates = [name for name in known if name.startswith(prefix) and name.endswith("-cloud-amd64")]
    if not candidates:
        raise Unavailable(f"no {prefix}*-cloud-amd64 package is known; try apt-get update")
    return _cached(max(candidates, key=_version), _unpack_package)


def _version(package: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", package)]


def _unpack_package(tree: Path) -> None:
    scratch = tree.parent
    _output("apt-get", "-o", "APT::Sandbox::User=", "download", tree.name, cwd=scratch)
    _output("dpkg", "-x", str(next(scratch.glob("*.deb"))), str(tree))


def _output(*command: str, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{command[0]}: {error}") from error
    if done.returncode:
        raise Unavailable(f"{' '.join(command)} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _fingerprint(tools: dict[str, Path]) -> str:
    digest = hashlib.sha256(INIT.read_bytes() + Path(__file__).read_bytes())
    for path in tools.values():
        status = path.stat()
        digest.update(f"{path} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _build_initramfs(archive: Path, tree: Path, release: str, tools: dict[str, Path]) -> None:
    root = archive.with_name("root")
    for directory in ("bin", "etc/nvme", "dev", "proc", "sys", "tmp", "run", "mnt", "data"):
        (root / directory).mkdir(parents=True)
    for applet in _output(str(tools["busybox"]), "--list").split():
        (root / "bin" / applet).symlink_to("busybox")
    for name, path in tools.items():
        (root / "bin" / name).unlink(missing_ok=True)
        shutil.copy(path, root / "bin" / name)
        for library in _libraries(path):
            copy = root / library.relative_to("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            if not copy.exists():
                shutil.copy(library, copy)
    (root / "bin/sh").unlink()
    (root / "bin/sh").symlink_to("dash")  # busybox's own shell would prefer its applets to the tools
    _copy_modules(root, tree, release)
    shutil.copy(INIT, root / "init")
    (root / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    command = ["cpio", "--create", "--format=newc", "--owner=0:0", "--quiet", "--file", str(archive)]
    subprocess.run(command, cwd=root, input=names, text=True, check=True, timeout=120)


def _libraries(binary: Path) -> list[Path]:
    listing = subprocess.run(["ldd", str(binary)], capture_output=True, text=True, timeout=30, check=False)
    return [Path(found) for found in re.findall(r"(/\S+) \(0x", listing.stdout)]


def _copy_modules(root: Path, tree: Path, release: str) -> None:
    """Copies the modules and what they depend on, decompressed, with an index of their own."""
    _output(str(find_tool("depmod")), "-b", str(tree), release)
    source = tree / "lib/modules" / release
    dependencies: dict[str, list[str]] = {}
    for line in (source / "modules.dep").read_text().splitlines():
        module, _, needs = line.partition(":")
        dependencies[Path(module).name.partition(".")[0].replace("-", "_")] = [module, *needs.split()]
    for module in {path for name in MODULES for path in dependencies.get(name, [])}:
        copy = root / "lib/modules" / release / module.removesuffix(".xz")
        copy.parent.mkdir(parents=True, exist_ok=True)
        content = (source / module).read_bytes()
        copy.write_bytes(lzma.decompress(content) if module.endswith(".xz") else content)
    for index in ("modules.order", "modules.builtin"):
        shutil.copy(source / index, root / "lib/modules" / release)
    _output(str(find_tool("depmod")), "-b", str(root), release)
