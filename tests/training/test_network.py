"""The network interface of a job on several hosts."""

from __future__ import annotations

import ipaddress
import socket

import psutil
import pytest

from kebiolm.errors import UserError
from kebiolm.training.network import GLOO_INTERFACE, NCCL_INTERFACE, choose_interface, interface_towards


@pytest.fixture
def own_interface() -> tuple[str, str]:
    """(name, IPv4 address) of an interface of this machine that is not the loopback."""
    for name, addresses in psutil.net_if_addrs().items():
        for entry in addresses:
            if entry.family == socket.AF_INET and not ipaddress.ip_address(entry.address).is_loopback:
                return name, entry.address
    pytest.skip("this machine has no network interface but the loopback")


def launched(address: str, **changes: str) -> dict[str, str]:
    """What DeepSpeed's launcher sets on the second of two hosts with two processes each."""
    return {"MASTER_ADDR": address, "WORLD_SIZE": "4", "LOCAL_SIZE": "2", "LOCAL_RANK": "0"} | changes


def test_interface_is_the_one_that_leads_to_the_first_host(own_interface):
    name, address = own_interface
    assert interface_towards(address) == name


def test_gloo_and_nccl_get_the_interface_and_it_is_said(own_interface):
    name, address = own_interface
    environment, said = launched(address), []
    choose_interface(environment, said.append)
    assert (environment[GLOO_INTERFACE], environment[NCCL_INTERFACE]) == (name, f"={name}")
    assert len(said) == 1 and name in said[0]


def test_only_the_first_process_of_a_host_says_it(own_interface):
    environment, said = launched(own_interface[1], LOCAL_RANK="1"), []
    choose_interface(environment, said.append)
    assert GLOO_INTERFACE in environment and not said


@pytest.mark.parametrize("named", [GLOO_INTERFACE, NCCL_INTERFACE])
def test_the_users_choice_stays(own_interface, named):
    environment = launched(own_interface[1], **{named: "chosen0"})
    choose_interface(environment, lambda line: None)
    assert environment[named] == "chosen0"
    assert {GLOO_INTERFACE, NCCL_INTERFACE} <= environment.keys()


@pytest.mark.parametrize(
    "environment",
    [
        launched("10.0.0.1", LOCAL_SIZE="4"),
        {"MASTER_ADDR": "10.0.0.1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"},
        {"MASTER_ADDR": "localhost", "WORLD_SIZE": "2"},
        {},
    ],
    ids=["deepspeed", "torchrun", "localhost", "no launcher"],
)
def test_nothing_is_set_for_one_host(environment):
    before = dict(environment)
    choose_interface(environment, pytest.fail)
    assert environment == before


@pytest.mark.parametrize("address", ["localhost", "no-such-host.invalid"])
def test_an_address_that_only_this_host_or_none_knows_is_refused(address):
    with pytest.raises(UserError, match=rf"MASTER_ADDR: got {address}.*expected.*GLOO_SOCKET_IFNAME"):
        choose_interface(launched(address), pytest.fail)
