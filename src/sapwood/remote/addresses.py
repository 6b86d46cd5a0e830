"""Addresses of this machine: whether one stays on it, which decides on keys in the clear, proxies, and servers without a lock; and sockets
that listen at one."""

from __future__ import annotations

import ipaddress
import socket

from sapwood.errors import ConfigError


def is_loopback(host: str) -> bool:
    """Of a name or a number, as it stands in an address (IPv6 without its brackets)."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket at the address; port 0 takes any that is free. Raises `ConfigError` where it cannot be taken."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024)
    except OSError as error:
        raise ConfigError(f"{host}:{port} cannot be listened on ({error.strerror or error}). Choose another --port or --host.") from None
