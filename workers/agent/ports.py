"""Ports at which the members of gangs meet: free on this host when taken, kept from other gangs until given back."""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Iterable


class Port:
    """One port that this process keeps. `open_up` lets a program bind it; `give_back` lets others have it."""

    def __init__(self, number: int, guard: socket.socket, bound: socket.socket | None) -> None:
        self.number = number
        self._guard = guard
        self._bound = bound

    def open_up(self) -> None:
        """Lets go of the port itself, right before the program that binds it starts; no other gang is given it."""
        if self._bound is not None:
            self._bound.close()
            self._bound = None

    def give_back(self) -> None:
        """The program has ended: others may have the port."""
        self.open_up()
        self._guard.close()


class Ports:
    """Takes ports of one range, each for one gang of all agents of this host.

    Two things are held. The port itself, bound on all addresses, until the program starts: so it was free a moment
    before. And a name in the kernel (an abstract Unix socket, which lives in the same network namespace as the port and
    dies with its holder), until the program has ended: so no agent gives the port to a second gang, also while the
    first one's program does not listen. Who takes a port without asking can still be faster than the program, in the
    milliseconds between; the range lies outside that from which the kernel gives ports to outgoing connections.
    """

    def __init__(self, numbers: range) -> None:
        self._numbers = numbers

    def take(self) -> Port | None:
        """A port that is free now; None when none of the range is."""
        for number in _from_anywhere(self._numbers):
            guard = _guard(number)
            if guard is None:
                continue
            bound = _bind(number)
            if bound is not None:
                return Port(number, guard, bound)
            guard.close()
        return None

    def keep(self, number: int) -> Port | None:
        """The port of a program that runs already, kept from other gangs; None when another process keeps it."""
        guard = _guard(number)
        return None if guard is None else Port(number, guard, None)


def _from_anywhere(numbers: range) -> Iterable[int]:
    """All of them, beginning anywhere: agents that look at the same time do not all meet at the first."""
    start = random.randrange(len(numbers)) if numbers else 0
    return [*numbers[start:], *numbers[:start]]


def _guard(number: int) -> socket.socket | None:
    guard = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        guard.bind(f"\0cfab-gang-port-{number}")
    except OSError:
        guard.close()
        return None
    return guard


def _bind(number: int) -> socket.socket | None:
    """The port on all addresses of both families, without SO_REUSEADDR: a program that does not set it must get it."""
    for family, address in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
        try:
            bound = socket.socket(family, socket.SOCK_STREAM)
        except OSError:
            continue
        try:
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            bound.bind((address, number))
            return bound
        except OSError as exc:
            bound.close()
            if family == socket.AF_INET or exc.errno not in _NO_SUCH_FAMILY:
                return None
    return None


_NO_SUCH_FAMILY = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
