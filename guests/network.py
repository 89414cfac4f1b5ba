"""A network for a guest: a tap interface, an address by DHCP, and the world behind it.

``python3 -m guests.network [--tap NAME] -- COMMAND…``, as root, makes the tap, serves one address
on it (``GUEST``; ours is ``HOST``), lets the guest out through this machine's own address if nft
and a default route are here, and runs COMMAND. What was made goes when COMMAND ends.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from guests import artefacts, busybox, debian

TAP = "pyvmm0"
HOST, GUEST = "192.0.2.1", "192.0.2.2"  # RFC 5737: for documentation, so surely free.
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
RESOLVERS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


@contextlib.contextmanager
def tap(name: str = TAP, host: str = HOST, guest: str = GUEST) -> Iterator[None]:
    """A tap interface with our address, and a DHCP server that has just one to give."""
    _ip(f"tuntap add dev {name} mode tap")
    with contextlib.ExitStack() as stack:
        stack.callback(_ip, f"link delete {name}")
        _ip(f"address add {host}/24 dev {name}")
        _ip(f"link set {name} up")
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pyvmm-dhcp-")))
        leases, configuration = directory / "leases", directory / "udhcpd.conf"
        leases.touch()
        configuration.write_text(
            f"interface {name}\nstart {guest}\nend {guest}\nmax_leases 1\nlease_file {leases}\n"
            f"pidfile {directory}/pid\noption subnet 255.255.255.0\noption router {host}\n"
            + "".join(f"option dns {address}\n" for address in _name_servers())
        )
        command = [str(busybox.build()), "udhcpd", "-f", str(configuration)]
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(server.wait)
        stack.callback(server.kill)
        yield


@contextlib.contextmanager
def masquerade(name: str = TAP) -> Iterator[bool]:
    """Let what comes from the tap out, as if it came from here; whether that can be done."""
    nft = debian.which("nft")
    if nft is None or not _ip("route show default"):
        yield False
        return
    before = FORWARDING.read_text()
    table, hook = f"table ip {name}", "type nat hook postrouting priority srcnat"
    rules = f"chain out {{ {hook}; ip saddr {GUEST} oifname != {name} masquerade; }}"
    subprocess.run([nft, f"{table} {{ {rules} }}"], check=True)
    try:
        FORWARDING.write_text("1\n")
        yield True
    finally:
        FORWARDING.write_text(before)
        subprocess.run([nft, f"delete {table}"], check=True)


def _ip(words: str) -> str:
    result = subprocess.run(["ip", *words.split()], capture_output=True, text=True)
    if result.returncode != 0:
        raise debian.PackageError(f"ip {words}: {result.stderr.strip()}")
    return result.stdout


def _name_servers() -> list[str]:
    """Those of this machine that a guest can reach, too."""
    for path in RESOLVERS:
        lines = path.read_text().splitlines() if path.is_file() else []
        found = [line.split()[1] for line in lines if line.startswith("nameserver ")]
        if usable := [a for a in found if ":" not in a and not a.startswith("127.")]:
            return usable
    return []


def main() -> int:
    """Run the command line's command beside a network for its guest."""
    parser = argparse.ArgumentParser(
        description="Make a network for a guest, and run a command.",
        usage="network [--tap NAME] -- COMMAND…",
    )
    parser.add_argument("--tap", default=TAP, metavar="NAME", help=f"default: {TAP}")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    options = parser.parse_args()
    if os.geteuid() != 0:
        debian.say("network: only root may make a tap interface")
        return 1
    try:
        with tap(options.tap), masquerade(options.tap) as reaches_out:
            where = "and through here the rest" if reaches_out else "and no further"
            debian.say(f"network: the guest at {GUEST} reaches this machine at {HOST}, {where}")
            return subprocess.run(options.command, cwd=artefacts.PROJECT).returncode
    except debian.PackageError as error:
        debian.say(f"network: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
