"""Hosts as network namespaces on two switches that a cable joins; `cut` drops what crosses it.

A thread `inside` a host connects to that host's own loopback, and so do processes started there.
Needs root and Linux.
"""

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


def _ip(*arguments: str, inside: str = "") -> str:
    command = ["ip", *(["-n", inside] if inside else []), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def available() -> bool:
    """Whether namespaces, bridges and pairs of interfaces can be made here."""
    try:
        with Network([["probe"]]):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


class Network:
    """`sides`: the names of the hosts at each switch. Every host has an address on one network."""

    def __init__(self, sides: Sequence[Sequence[str]]) -> None:
        self._tag = f"aa{os.getpid() % 100_000}"
        self._sides = sides
        self.hosts = [host for side in sides for host in side]

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def address(self, host: str) -> str:
        return f"10.77.0.{self.hosts.index(host) + 1}"

    @contextlib.contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """This thread, and processes that it starts, are on that host."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _enter(os.open(f"/run/netns/{self._space(host)}", os.O_RDONLY))
            yield
        finally:
            _enter(before)

    def cut(self) -> None:
        """From now on packets between the sides are dropped, without a word to the sender."""
        _ip("link", "set", "cable0", "down", inside=self._space("switch"))

    def join(self) -> None:
        _ip("link", "set", "cable0", "up", inside=self._space("switch"))

    def _space(self, name: str) -> str:
        return f"{self._tag}-{name}"

    def _make(self) -> None:
        switch = self._space("switch")
        _ip("netns", "add", switch)
        _ip("link", "add", "cable0", "type", "veth", "peer", "name", "cable1", inside=switch)
        for number, side in enumerate(self._sides):
            bridge = f"switch{number}"
            _ip("link", "add", bridge, "type", "bridge", inside=switch)
            _ip("link", "set", bridge, "up", inside=switch)
            _ip("link", "set", f"cable{number}", "master", bridge, "up", inside=switch)
            for host in side:
                self._connect(host, bridge)
        self._know_each_other()

    def _connect(self, host: str, bridge: str) -> None:
        space, port = self._space(host), f"to-{host}"
        _ip("netns", "add", space)
        _ip(
            "link", "add", "eth0", "netns", space, "type", "veth", "peer", "name", port,
            "netns", self._space("switch"),
        )  # fmt: skip
        _ip("link", "set", port, "master", bridge, "up", inside=self._space("switch"))
        _ip("addr", "add", f"{self.address(host)}/24", "dev", "eth0", inside=space)
        for link in ("lo", "eth0"):
            _ip("link", "set", link, "up", inside=space)

    def _know_each_other(self) -> None:
        """Fixed hardware addresses: otherwise a sender soon learns that no host answers ARP."""
        links = {}
        for host in self.hosts:
            with self.inside(host):
                shown = _ip("-o", "link", "show", "eth0")
                links[host] = shown.partition("link/ether ")[2].split()[0]
        for host in self.hosts:
            for other in self.hosts:
                if other != host:
                    _ip(
                        "neigh", "replace", self.address(other), "lladdr", links[other],
                        "dev", "eth0", "nud", "permanent", inside=self._space(host),
                    )  # fmt: skip

    def _remove(self) -> None:
        for name in (*self.hosts, "switch"):
            if Path(f"/run/netns/{self._space(name)}").exists():
                _ip("netns", "del", self._space(name))


def _enter(descriptor: int) -> None:
    try:
        if _LIBC.setns(descriptor, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "cannot enter the namespace")
    finally:
        os.close(descriptor)
