"""``nvmeof serve``: a target in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import shlex
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from nvmeof.cli.arguments import argument
from nvmeof.cli.descriptors import ExhaustionHandler, raise_limit
from nvmeof.cli.pool_keys import Key, add_key_options, has_key, key_of
from nvmeof.cli.pool_serve import ServedPool, served
from nvmeof.errors import UsageError
from nvmeof.limits import DRAIN_SECONDS
from nvmeof.spec.fabrics import PORT_DISCOVERY, UUID_NQN_PREFIX, AddressFamily
from nvmeof.target.config import (
    ListenerConfig,
    NamespaceConfig,
    PoolConfig,
    SubsystemConfig,
    TargetConfig,
    load_config,
    parse_address,
    parse_advertised,
    parse_block_size,
    parse_nqn,
    parse_size,
)

if TYPE_CHECKING:
    from nvmeof.engine.volume import Volume
    from nvmeof.target.server import Listener, Target
    from nvmeof.target.subsystem import Subsystem

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

DESCRIPTION = """\
Serve a file (made if it is missing and --size is given), a block device or a pool to NVMe/TCP hosts, or everything that
a configuration file names. While a pool is served, nvmeof pool works on it through the socket DIR/control.

Prints a line that begins with READY and names every HOST:PORT it listens at, and then the nvme connect line for each.
SIGTERM or Ctrl-C lets commands in progress end and puts everything on media; a second one stops at once.
"""
EPILOG = """\
examples:
  nvmeof serve disk.img --size 1G
  nvmeof serve disk.img --listen 0.0.0.0:4420 --listen '[::]:4420' --allow-host "$(cat /etc/nvme/hostnqn)"
  nvmeof serve --pool pool --key-file pool.key
  nvmeof serve --config target.toml
"""
DISK_FLAGS = (
    "disk",
    "pool",
    "size",
    "block_size",
    "listen",
    "discovery_listen",
    "nqn",
    "allow_host",
    "advertise",
    "congestion",
    "key_file",
    "passphrase_file",
    "key_command",
)
SIGNALS = (signal.SIGTERM, signal.SIGINT)
PROBES = {
    AddressFamily.IPV4: (socket.AF_INET, "192.0.2.1", "127.0.0.1"),
    AddressFamily.IPV6: (socket.AF_INET6, "2001:db8::1", "::1"),
}
"""A documentation address to ask the routing table about, and what to say when it knows nothing."""


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "serve",
        help="serve a file, a block device or a pool to NVMe/TCP hosts",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("disk", nargs="?", metavar="DISK", help="the file or block device that keeps namespace 1")
    add("--config", metavar="FILE", type=Path, help="a TOML file instead of DISK and its options")
    add("--pool", metavar="DIR", help="the pool that keeps the namespaces; namespace 1 is made if there is none")
    size = "of a file or namespace that is made: bytes, or a number with K, M, G, T (of a pool by default: all)"
    add("--size", type=argument(parse_size), help=size)
    add("--block-size", type=argument(parse_block_size), help="of a file that is made: 512 or 4096 (default: 4096)")
    add("--listen", metavar="HOST:PORT", action="append", type=argument(parse_address),
        help="where hosts connect; repeatable, port 0 takes a free one (default: 127.0.0.1:4420)")  # fmt: skip
    add("--discovery-listen", metavar="HOST:PORT", action="append", type=argument(_discovery_address),
        help="where only the discovery service is; it is on every --listen address too")  # fmt: skip
    add("--nqn", type=argument(parse_nqn), help="name of the subsystem (default: made from the disk's UUID)")
    add("--allow-host", metavar="NQN", action="append", type=argument(parse_nqn),
        help="a host that may connect; repeatable (default: any)")  # fmt: skip
    add("--advertise", metavar="HOST:PORT", action="append", type=argument(parse_advertised),
        help="what the discovery log says instead of --listen; the n-th belongs to the n-th --listen")  # fmt: skip
    add("--congestion", metavar="NAME", help="TCP congestion control of all connections (default: the system's)")
    add("--loop", choices=("uvloop", "asyncio"), default="uvloop", help="event loop (default: uvloop)")
    add("--json", action="store_true", help="one line of JSON instead of READY and nvme connect lines")
    add_key_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes. Raises whatever keeps the target from serving or from ending well."""
    config = config_of(args)
    key = key_of(args) if args.pool is not None else None
    keys = {} if key is None else {config.pools[0].name: key}
    with asyncio.Runner(loop_factory=_loop_factory(args.loop)) as runner:
        runner.run(serve(config, as_json=args.json, keys=keys))
    return 0


def config_of(args: argparse.Namespace) -> TargetConfig:
    """What the arguments ask for. Raises UsageError, ConfigError."""
    if args.config is not None:
        for flag in DISK_FLAGS:
            if getattr(args, flag) is not None:
                name = "DISK" if flag == "disk" else "--" + flag.replace("_", "-")
                raise UsageError(f"{name}: got it together with --config, wanted one of them")
        return load_config(args.config)
    subsystem, pools = _served(args)
    addresses = args.listen or [(ListenerConfig.host, ListenerConfig.port)]
    advertised: list[tuple[str, int] | None] = list(args.advertise or ())
    if len(advertised) > len(addresses):
        raise UsageError(
            f"--advertise: got {len(advertised)}, wanted at most one for each of {len(addresses)} --listen"
        )
    advertised += [None] * (len(addresses) - len(advertised))
    listeners = [
        ListenerConfig(host, port, instead, congestion=args.congestion)
        for (host, port), instead in zip(addresses, advertised, strict=True)
    ]
    listeners += [
        ListenerConfig(host, port, discovery_only=True, congestion=args.congestion)
        for host, port in args.discovery_listen or ()
    ]
    return TargetConfig((subsystem,), tuple(listeners), pools)


def _served(args: argparse.Namespace) -> tuple[SubsystemConfig, tuple[PoolConfig, ...]]:
    allowed = None if args.allow_host is None else tuple(args.allow_host)
    if args.pool:
        if args.disk or args.block_size is not None:
            name = "DISK" if args.disk else "--block-size"
            raise UsageError(f"{name}: got it together with --pool, wanted one of them")
        pool = PoolConfig(args.pool, Path(args.pool))
        return SubsystemConfig((), nqn=args.nqn or "", allowed_hosts=allowed, pool=pool.name, size=args.size), (pool,)
    if not args.disk:
        raise UsageError("got neither DISK nor --pool nor --config, wanted one of them (see nvmeof serve --help)")
    if has_key(args):
        raise UsageError("got a key without --pool, wanted it only for a pool")
    namespace = NamespaceConfig(Path(args.disk), size=args.size, block_size=args.block_size)
    return SubsystemConfig((namespace,), nqn=args.nqn or "", allowed_hosts=allowed), ()


async def serve(config: TargetConfig, *, as_json: bool = False, keys: Mapping[str, Key] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain. ``keys`` are of pools, by name.

    Raises TransportError, UsageError, OSError, WriteFault.
    """
    from nvmeof.target.server import Target

    raise_limit()
    asyncio.get_running_loop().set_exception_handler(ExhaustionHandler())
    first, second = asyncio.Event(), asyncio.Event()
    with _signals(first, second):
        async with contextlib.AsyncExitStack() as stack:
            pools = {each.name: await stack.enter_async_context(served(each, keys or {})) for each in config.pools}
            target = await stack.enter_async_context(Target())
            for wanted in config.subsystems:
                await add_subsystem(target, wanted, pools)
            for each in config.listeners:
                await _listen(target, each)
            for pool in pools.values():
                await stack.enter_async_context(pool.control)
            # What was loaded by now stays: the collector need not look at it again (2 % of a core under 4 KiB reads).
            gc.collect()
            gc.freeze()
            print(ready_json(target) if as_json else ready_text(target), flush=True)
            await first.wait()
            print(f"nvmeof: draining, {DRAIN_SECONDS:.0f} s at most; a second signal stops at once", file=sys.stderr)
            await _until(target.drain(), second)


async def add_subsystem(
    target: Target, wanted: SubsystemConfig, pools: Mapping[str, ServedPool] = MappingProxyType({})
) -> Subsystem:
    """Open the volumes and serve them. Raises UsageError."""
    from nvmeof.target.subsystem import Subsystem

    async with contextlib.AsyncExitStack() as opened:
        volumes = [await _open(each, pools, opened) for each in wanted.namespaces]
        uuid = volumes[0].uuid if volumes else pools[wanted.pool].uuid
        subsystem = Subsystem(
            wanted.nqn or f"{UUID_NQN_PREFIX}{uuid}",
            serial=wanted.serial,
            model=wanted.model,
            allowed_hosts=wanted.allowed_hosts,
        )
        target.add_subsystem(subsystem)
        for each, volume in zip(wanted.namespaces, volumes, strict=True):
            if each.pool:
                pools[each.pool].show(each, volume, subsystem)
            else:
                subsystem.add_namespace(volume, each.nsid)
        opened.pop_all()
    if wanted.pool:
        await pools[wanted.pool].show_all(subsystem, wanted.size)
    return subsystem


async def _listen(target: Target, wanted: ListenerConfig) -> None:
    try:
        await target.listen(
            wanted.host,
            wanted.port,
            advertised=wanted.advertised,
            discovery_only=wanted.discovery_only,
            congestion=wanted.congestion,
        )
    except UsageError as error:
        raise UsageError(f"{wanted.where}: {error}" if wanted.where else str(error)) from error


async def _open(wanted: NamespaceConfig, pools: Mapping[str, ServedPool], opened: contextlib.AsyncExitStack) -> Volume:
    from nvmeof.engine.file_volume import FileVolume

    try:
        if wanted.pool:
            return await pools[wanted.pool].volume(wanted)
        volume = await FileVolume.open(wanted.path, wanted.size, wanted.block_size)
    except UsageError as error:
        raise UsageError(f"{wanted.where}: {error}" if wanted.where else str(error)) from error
    opened.push_async_callback(volume.close)
    return volume


async def _until(work: Awaitable[object], event: asyncio.Event) -> None:
    """Await ``work``, but no longer than until ``event`` is set."""
    tasks = {asyncio.ensure_future(work), asyncio.ensure_future(event.wait())}
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        task.result()


@contextlib.contextmanager
def _signals(first: asyncio.Event, second: asyncio.Event) -> Iterator[None]:
    """The first signal sets ``first``, the next ``second``; a third one ends the process in the usual way."""
    loop = asyncio.get_running_loop()

    def received() -> None:
        if not first.is_set():
            first.set()
        else:
            second.set()
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    for number in SIGNALS:
        loop.add_signal_handler(number, received)
    try:
        yield
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)


# --- what is printed --------------------------------------------------------------------------------------------------


def ready_text(target: Target) -> str:
    """READY with every address, and the commands that reach them."""
    listeners = sorted(target.listeners, key=lambda listener: listener.discovery_only)
    return "\n".join([f"READY {' '.join(map(str, listeners))}", *_commands(target)])


def ready_json(target: Target) -> str:
    """The same and more, for programs: one line."""
    listeners = [
        {"host": each.host, "port": each.port, "discovery_only": each.discovery_only} for each in target.listeners
    ]
    subsystems = [
        {
            "nqn": subsystem.nqn,
            "namespaces": [
                {
                    "nsid": namespace.nsid,
                    "uuid": str(namespace.volume.uuid),
                    "size": namespace.volume.size,
                    "block_size": namespace.volume.block_size,
                }
                for namespace in subsystem.namespaces.values()
            ],
        }
        for subsystem in target.subsystems.values()
    ]
    ready = {"ready": True, "pid": os.getpid(), "listeners": listeners, "subsystems": subsystems}
    return json.dumps(ready | {"commands": _commands(target)})


def _commands(target: Target) -> list[str]:
    lines = []
    for listener in target.listeners:
        host, port = _address_for_hosts(listener)
        if listener.discovery_only:
            lines.append(f"nvme discover -t tcp -a {host} -s {port}")
        else:
            lines += [f"nvme connect -t tcp -a {host} -s {port} -n {shlex.quote(nqn)}" for nqn in target.subsystems]
    return lines


def _address_for_hosts(listener: Listener) -> tuple[str, int]:
    """What a host types. For a wildcard, the address from which this machine would reach the world."""
    from nvmeof.target.discovery import reachable

    family, probe, otherwise = PROBES[listener.family]
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((probe, 9))
            own: str = sock.getsockname()[0]
    except OSError:
        own = otherwise
    return reachable(listener, own) or (listener.host, listener.port)


# --- arguments --------------------------------------------------------------------------------------------------------


def _discovery_address(text: str) -> tuple[str, int]:
    return parse_address(text, PORT_DISCOVERY)


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "asyncio":
        return asyncio.new_event_loop
    import uvloop

    return uvloop.new_event_loop
