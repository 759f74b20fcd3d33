"""Which network interface the processes of a job on several hosts speak through.

gloo listens on the address that the host's own name stands for, often a loopback address that no other host reaches;
NCCL takes the first interface that it finds, which may be a container's bridge. Both obey an environment variable. The
interface from which the first host is reached is on the network that all hosts share.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, MutableMapping

import psutil

from kebiolm.errors import UserError

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
NCCL_INTERFACE = "NCCL_SOCKET_IFNAME"


def choose_interface(environment: MutableMapping[str, str], say: Callable[[str], None]) -> None:
    """Set the interface of gloo and NCCL where the job spans hosts and the user named none.

    Args:
        environment: what the launcher set: MASTER_ADDR, WORLD_SIZE, LOCAL_SIZE (DeepSpeed) or LOCAL_WORLD_SIZE
            (torchrun), LOCAL_RANK. Is changed.
        say: is given one line by the first process of each host.

    Raises:
        UserError: MASTER_ADDR cannot be found, or means this host only.
    """
    if not _spans_hosts(environment) or (GLOO_INTERFACE in environment and NCCL_INTERFACE in environment):
        return
    interface = interface_towards(environment["MASTER_ADDR"])
    # NCCL compares the beginnings of names: without "=" eth1 would also mean eth10.
    chosen = {GLOO_INTERFACE: interface, NCCL_INTERFACE: f"={interface}"}
    missing = {name: value for name, value in chosen.items() if name not in environment}
    environment.update(missing)
    if environment.get("LOCAL_RANK", "0") == "0":
        names = " and ".join(missing)
        say(f"{socket.gethostname()}: {names} set to {interface}, which leads to {environment['MASTER_ADDR']}")


def interface_towards(address: str) -> str:
    """Name of the interface from which this host would send to `address`, a host name or an IPv4 or IPv6 address.

    Raises:
        UserError: the name is unknown, no route leads there, or it is a loopback address.
    """
    try:
        family, *_, target = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # sends nothing; the system only looks up its route
            own = probe.getsockname()[0].split("%")[0]
    except OSError as error:
        raise UserError(
            "MASTER_ADDR", got=f"{address} ({error.strerror})", expected="an address that this host can reach",
            mend=f"correct it (deepspeed --master_addr), or set {GLOO_INTERFACE} in .deepspeed_env",
        ) from None  # fmt: skip
    if ipaddress.ip_address(own).is_loopback:
        raise UserError(
            "MASTER_ADDR", got=f"{address}, which is {own} here", expected="an address that all hosts reach",
            mend=f"give the first host's address (deepspeed --master_addr), or set {GLOO_INTERFACE} in .deepspeed_env",
        )  # fmt: skip
    return next(
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(entry.address.split("%")[0] == own for entry in addresses)
    )


def _spans_hosts(environment: MutableMapping[str, str]) -> bool:
    world_size = int(environment.get("WORLD_SIZE", "1"))
    local_size = environment.get("LOCAL_SIZE", environment.get("LOCAL_WORLD_SIZE"))
    if local_size is not None:
        return world_size > int(local_size)
    return world_size > 1 and environment.get("MASTER_ADDR", "localhost") not in ("localhost", "127.0.0.1", "::1")
