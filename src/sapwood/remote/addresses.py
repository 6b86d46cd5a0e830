"""Whether an address stays on this machine: what decides on keys in the clear, proxies, and servers without a lock."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Of a name or a number, as it stands in an address (IPv6 without its brackets)."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
