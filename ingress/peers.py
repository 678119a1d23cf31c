"""Who speaks: the address behind a request, and whether it is one that we expect.

It is the signature that proves a delivery; the address is a second, weaker hint. The vendor has
published one address and has other regions, so an address that is not listed is by default only
observed: to refuse it could lose a reward that is properly signed.

``X-Forwarded-For`` can be written by anybody. Each proxy appends the address that it was spoken to
from, so the header is read from its right end, and only as far as the hops are proxies of ours.
``Forwarded`` (RFC 7239) and every other such header is not read.
"""

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import NamedTuple

from ledger.config import InvalidSetting

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

PUBLISHED = "20.207.108.216"
"""The one address that CustomerGlu has published for its webhooks."""
HOPS_MAX = 16
"""How many entries of ``X-Forwarded-For`` are read; behind as many proxies nobody is known."""
TEXT_SIZE_MAX = 64
"""Longer than any address with brackets and a port."""
TEXTS_MAX = 4096
"""How many texts are remembered with what they mean, so that usually nothing is parsed."""

_WITH_PORT = re.compile(r"(?:([0-9.]+)|\[([^\]]+)\])(?::[0-9]{1,5})?")


class Mode(StrEnum):
    """What an address that is not allowed means."""

    OFF = "off"
    OBSERVE = "observe"
    """It is counted and logged, and its delivery is taken."""
    ENFORCE = "enforce"
    """Its delivery is refused."""


class Speaker(NamedTuple):
    """Who sent a request: ``None`` when nobody can say."""

    address: Address | None
    is_allowed: bool
    """Whether the address is in the list, in every mode."""


class _Hop(NamedTuple):
    speaker: Speaker
    is_proxy: bool


_NOBODY = _Hop(Speaker(None, is_allowed=False), is_proxy=False)


class PeerPolicy:
    """Which addresses are allowed, and which proxies are believed about whom they speak for."""

    def __init__(self, mode: Mode, allowed: Iterable[Network], proxies: Iterable[Network]) -> None:
        self.mode = mode
        self._allowed = tuple(allowed)
        self._proxies = tuple(proxies)
        self._remembered = lru_cache(TEXTS_MAX)(self._parse)

    def speaker(self, peer: str | None, forwarded_for: str | None) -> Speaker:
        """Who sent the request that came from ``peer`` with this ``X-Forwarded-For``.

        ``peer`` is the other end of the connection. Several such headers are given joined by
        commas, in their order. A peer that is no proxy of ours speaks for itself, whatever it
        claims; so does a proxy that names nobody. Never raises.
        """
        hop = self._hop(peer or "")
        if hop.is_proxy and forwarded_for:
            entries = forwarded_for.rsplit(",", HOPS_MAX)
            if len(entries) > HOPS_MAX:
                # What lies beyond the bound is nobody, be it one entry or a thousand.
                entries[0] = ""
            for entry in reversed(entries):
                hop = self._hop(entry.strip(" \t"))
                if not hop.is_proxy:
                    break
        return hop.speaker

    def refuses(self, speaker: Speaker) -> bool:
        """Whether the speaker's delivery must be refused."""
        return self.mode is Mode.ENFORCE and not speaker.is_allowed

    def _hop(self, text: str) -> _Hop:
        return self._remembered(text) if len(text) <= TEXT_SIZE_MAX else _NOBODY

    def _parse(self, text: str) -> _Hop:
        address = _address(text)
        if address is None:
            return _NOBODY
        return _Hop(
            Speaker(address, any(address in network for network in self._allowed)),
            any(address in network for network in self._proxies),
        )


def read_peer_policy(environment: Mapping[str, str]) -> PeerPolicy:
    """The policy that ``environment`` holds; raises ``InvalidSetting``.

    ``INGRESS_ADDRESSES``: off, observe or enforce. ``INGRESS_ADDRESSES_ALLOWED`` and
    ``INGRESS_TRUSTED_PROXIES``: networks or addresses, separated by commas.
    """
    mode = environment.get("INGRESS_ADDRESSES") or Mode.OBSERVE
    if mode not in set(Mode):
        raise InvalidSetting("INGRESS_ADDRESSES", f"must be one of: {', '.join(Mode)}")
    proxies = _networks(environment, "INGRESS_TRUSTED_PROXIES", "")
    if any(network.prefixlen == 0 for network in proxies):
        raise InvalidSetting("INGRESS_TRUSTED_PROXIES", "would believe everybody")
    return PeerPolicy(
        Mode(mode), _networks(environment, "INGRESS_ADDRESSES_ALLOWED", PUBLISHED), proxies
    )


def _networks(environment: Mapping[str, str], name: str, default: str) -> list[Network]:
    text = environment.get(name) or default
    try:
        return [_plain_network(entry.strip()) for entry in text.split(",")] if text else []
    except ValueError:
        raise InvalidSetting(
            name, "must be networks, such as 10.0.0.0/8,2001:db8::/32, with no bits behind the mask"
        ) from None


def _address(text: str) -> Address | None:
    """The address that ``text`` writes, with or without a port; ``None`` for all else."""
    if match := _WITH_PORT.fullmatch(text):
        text = match[1] or match[2]
    try:
        return _plain(ip_address(text))
    except ValueError:
        return None


def _plain(address: Address) -> Address:
    """One spelling for each address: no IPv4 inside IPv6, no zone."""
    if address.version == 4:
        return address
    return address.ipv4_mapped or IPv6Address(int(address))


def _plain_network(text: str) -> Network:
    network = ip_network(text)
    if network.version == 6 and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - 96))
    return network
