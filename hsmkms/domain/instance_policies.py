"""Policies of an instance: from where it may be called, and what its new keys are like (contract section 1.4)."""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeAlias

from hsmkms.domain.key_policies import INTERVAL_MONTHS
from hsmkms.errors import InvalidField

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_NETWORKS: Final = 1_000
PRIVATE_ONLY: Final = "private-only"
ALLOWED_NETWORKS: Final = frozenset({"public-and-private", PRIVATE_ONLY})


class InstancePolicyKind(enum.Enum):
    """As the wire names them."""

    ALLOWED_NETWORK = "allowedNetwork"
    ALLOWED_IP = "allowedIP"
    DUAL_AUTH_DELETE = "dualAuthDelete"
    KEY_CREATE_IMPORT_ACCESS = "keyCreateImportAccess"
    METRICS = "metrics"
    ROTATION = "rotation"


@dataclass(frozen=True, slots=True)
class CreateAccess:
    """Which kinds of keys may be made; what a write leaves out is as here."""

    create_root_key: bool = True
    create_standard_key: bool = True
    import_root_key: bool = True
    import_standard_key: bool = True
    enforce_token: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class InstancePolicy:
    """One policy; a disabled one has no attributes. `id` is made of instance and kind."""

    id: str
    account: str
    instance_id: str
    kind: InstancePolicyKind
    enabled: bool
    allowed_network: str | None = None
    allowed_ip: tuple[str, ...] = ()
    create_access: CreateAccess | None = None
    interval_month: int | None = None
    created_at: datetime
    created_by: str
    updated_at: datetime
    updated_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InstancePolicyWish:
    """What somebody asks for."""

    kind: InstancePolicyKind
    enabled: bool
    allowed_network: str | None = None
    allowed_ip: tuple[str, ...] | None = None
    create_access: CreateAccess | None = None
    interval_month: int | None = None


class Restrictions:
    """From where an instance may be called, laid out for each request."""

    __slots__ = ("_networks", "_private_only")

    def __init__(self, policies: Iterable[InstancePolicy]) -> None:
        enabled = {policy.kind: policy for policy in policies if policy.enabled}
        network = enabled.get(InstancePolicyKind.ALLOWED_NETWORK)
        self._private_only = network is not None and network.allowed_network == PRIVATE_ONLY
        ip = enabled.get(InstancePolicyKind.ALLOWED_IP)
        self._networks = None if ip is None else tuple(parse_network(text) for text in ip.allowed_ip)

    def admit(self, address: str, *, from_any_ip: bool = False) -> bool:
        """Whether a caller at this address may call at all; both policies have to agree, unless `from_any_ip` sets
        allowedIP aside."""
        networks = None if from_any_ip else self._networks
        if not self._private_only and networks is None:
            return True
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        if self._private_only and not found.is_private:
            return False
        return networks is None or any(found in network for network in networks)


def policy_id(instance_id: str, kind: InstancePolicyKind) -> str:
    """One policy of a kind per instance."""
    return f"{instance_id}:{kind.value}"


def parse_network(text: str) -> Network:
    """An IPv4 or IPv6 network, or a single address. Raises InvalidField."""
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise InvalidField("allowed_ip", "The field `allowed_ip` takes IPv4 and IPv6 networks in CIDR form.") from error


def require_possible(wish: InstancePolicyWish) -> None:
    """Raise InvalidField unless an enabled policy has the attributes that it needs."""
    if not wish.enabled:
        return
    if wish.kind is InstancePolicyKind.ALLOWED_NETWORK and wish.allowed_network not in ALLOWED_NETWORKS:
        raise InvalidField("allowed_network", f"Give allowed_network as {' or '.join(sorted(ALLOWED_NETWORKS))}.")
    if wish.kind is InstancePolicyKind.ALLOWED_IP:
        if not wish.allowed_ip or len(wish.allowed_ip) > MAX_NETWORKS:
            raise InvalidField("allowed_ip", f"Give allowed_ip as a list of 1 to {MAX_NETWORKS} networks.")
        for text in wish.allowed_ip:
            parse_network(text)
    low, high = INTERVAL_MONTHS
    if wish.kind is InstancePolicyKind.ROTATION and not (wish.interval_month and low <= wish.interval_month <= high):
        raise InvalidField("interval_month", f"The field `interval_month` is a number from {low} to {high}.")
