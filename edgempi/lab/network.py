"""The wires: one namespace per device, a bridge in a namespace of its own, and every link shaped in both directions.

A token bucket (tbf) limits a device's egress, and another one the switch port towards it: with both, also several
senders to one receiver share that receiver's link, as they would on a real switch. netem is not used, so there is no
propagation delay, jitter or loss.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from edgempi.errors import UserError
from edgempi.lab.layout import HEAD, INTERFACE, Lan, head_address
from edgempi.lab.tools import nothing_there, run_tool

PREFIX = "edgempi-"
"""Of everything that a lab makes on the machine."""
SWITCH = "switch"
BRIDGE = "lan"
NAMESPACES = Path("/run/netns")

BUCKET_S = 1e-3
"""Tokens that an idle link saves up, as time at its rate. More would let messages pass unlimited; less makes the
kernel cut packets small, and that work is taken from the devices' processors."""
LEAST_BUCKET_BYTES = 6000
LARGEST_GSO_BYTES = 65536
FRAME = 1.06
"""Bytes on the wire per byte of a large packet, headers included; a packet above the bucket would be cut again."""
QUEUE_BYTES = 2**20
"""What a switch port stores where several senders meet."""


def namespace(host: str) -> str:
    """The name of a place's network namespace."""
    return PREFIX + host


def build(lan: Lan) -> None:
    """Make the switch, the head and the devices, and join them; raises `UserError` where the machine refuses."""
    _add_namespace(SWITCH)
    run_tool("ip", "-n", namespace(SWITCH), "link", "add", BRIDGE, "type", "bridge", "mcast_snooping", "0")
    run_tool("ip", "-n", namespace(SWITCH), "link", "set", BRIDGE, "addrgenmode", "none", "up")
    _add_place(HEAD, head_address())
    for device in lan.devices:
        _add_place(device.host, device.address)
        if lan.link_bits_per_s is not None:
            shape(device.host, lan.link_bits_per_s)


def shape(host: str, bits_per_s: float) -> None:
    """Limit a device's link to this rate, in each direction; headers count."""
    bucket = max(int(bits_per_s / 8 * BUCKET_S), LEAST_BUCKET_BYTES)
    largest = min(int(bucket / FRAME), LARGEST_GSO_BYTES)
    for place, interface in ((host, INTERFACE), (SWITCH, _port(host))):
        run_tool("ip", "-n", namespace(place), "link", "set", interface, "gso_max_size", str(largest))
        run_tool(
            "tc", "-n", namespace(place), "qdisc", "replace", "dev", interface, "root", "tbf",
            "rate", f"{bits_per_s:.0f}bit", "burst", f"{bucket}", "limit", f"{QUEUE_BYTES}",
        )  # fmt: skip


def set_link(host: str, up: bool) -> None:
    """Plug a device's cable in, or pull it out, at the switch."""
    run_tool("ip", "-n", namespace(SWITCH), "link", "set", _port(host), "up" if up else "down")


def found_namespaces() -> list[str]:
    """The namespaces of a lab, or of the remains of one, on this machine."""
    with suppress(OSError):
        return sorted(entry.name for entry in NAMESPACES.iterdir() if entry.name.startswith(PREFIX))
    return []


def remove() -> None:
    """Take all of it away; interfaces go with their namespaces."""
    for name in found_namespaces():
        # Pairs are deleted by name first: a namespace whose last process is a zombie would keep its end a while.
        if name == namespace(SWITCH):
            for interface in _ports():
                nothing_there(["ip", "-n", name, "link", "delete", interface])
        nothing_there(["ip", "netns", "delete", name])


def _ports() -> list[str]:
    with suppress(UserError):
        lines = run_tool("ip", "-n", namespace(SWITCH), "-o", "link", "show", "type", "veth").splitlines()
        return [line.split(": ")[1].partition("@")[0] for line in lines]
    return []


def _add_place(host: str, address: str) -> None:
    _add_namespace(host)
    name, switch = namespace(host), namespace(SWITCH)
    run_tool("ip", "-n", switch, "link", "add", _port(host), "type", "veth", "peer", "name", INTERFACE, "netns", name)
    run_tool("ip", "-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
    run_tool("ip", "-n", name, "link", "set", INTERFACE, "addrgenmode", "none", "up")
    run_tool("ip", "-n", switch, "link", "set", _port(host), "addrgenmode", "none", "master", BRIDGE, "up")


def _add_namespace(host: str) -> None:
    name = namespace(host)
    run_tool("ip", "netns", "add", name)
    run_tool("ip", "-n", name, "link", "set", "lo", "up")
    # bbr, the default of some machines, drains its path for 200 ms every 10 s; reno is in every kernel.
    setting = "echo reno > /proc/sys/net/ipv4/tcp_congestion_control"
    run_tool("nsenter", f"--net={NAMESPACES / name}", "sh", "-c", setting)


def _port(host: str) -> str:
    # Interface names have at most 15 characters, host names more: the address is short and unique.
    return f"p-{host[-13:]}"
