#!/usr/bin/env python3
"""What a cloud image's guest says of itself, on its console.

    cloud.py first|second|agent|copy PROGRAM ROOT VM ADDRESS...

    first     after its first boot; then it is rebooting
    second    after that
    agent     it has got the guest agent from the host, which runs
    copy      a clone after its first boot as itself; what it was before is in /root
"""
import contextlib
import sys
import time

from console import Console

when, program, root, name, *addresses = sys.argv[1:]
# What was printed before is no answer to what is typed now.
console = Console(program, root, name, extra=("--no-history",))
deadline = time.monotonic() + 1200
while "login: " not in console.text:
    assert time.monotonic() < deadline, "there is no login"
    # getty answers by its prompt; what comes before this terminal is raw, or before getty, is lost.
    console.send(b"\n")
    with contextlib.suppress(TimeoutError):
        while console.read(time.monotonic() + 20) and "login: " not in console.text:
            pass
console.send(b"root\n")
console.expect("Password: ?", 240)
console.send(b"cocoon\n")
console.expect(rf"root@{name}:~# ", 480)


def run(command, seconds=240):
    return console.run(command, seconds)[0]


def does(command, seconds=240):
    return console.run(command, seconds)[1] == 0


# What it is, at all times.
assert run("hostname").strip().endswith(name)
for address in addresses:
    said = run(f"ip -4 -o addr show | grep -F 'inet {address}/16'")
    assert address in said, said
routes = run("ip route show default")
assert "via 10.88.0.1" in routes and "metric 100" in routes and "metric 101" in routes, routes
servers = run("resolvectl dns | tr '\\n' ' '")
assert "10.88.0.1" in servers and "9.9.9.9" in servers, servers
assert does("ping -c 1 -W 60 10.88.0.1")

WAS = [("/etc/machine-id", "/root/machine-id"), ("/var/lib/cloud/data/instance-id", "/root/instance-id")]
SAME_KEYS = "cat /etc/ssh/ssh_host_*.pub | cmp -s - /root/keys"

if when == "first":
    said = run("cloud-init status --wait", 900)
    assert "done" in said, said
    assert "CIDATA" in run("lsblk -no LABEL /dev/vdb")
    size = int(run("df --output=size -B1M / | tail -n 1").split()[-1])
    assert size > 4000, f"the root file system has {size} MiB of 6 GiB"
    for file, copy in WAS:
        assert does(f"cp {file} {copy}")
    assert does("cat /etc/ssh/ssh_host_*.pub >/root/keys && sync")
    # Another command line stands for another kernel.
    setting = 'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX cocoon.test=1"'
    assert does(f"echo '{setting}' >/etc/default/grub.d/99_test.cfg && update-grub", 600)
    console.send(b"reboot\n")
    sys.exit()
if when == "second":
    assert does("test ! -e /dev/vdb"), "the volume of cloud-init is still there"
    assert "cocoon.test=1" in run("cat /proc/cmdline")
    # cloud-init says of itself that it did not run, or that it ran for nothing new.
    said = run("cloud-init status", 480)
    assert "disabled" in said or "done" in said, said
    for file, copy in WAS:
        assert does(f"cmp {file} {copy}"), file
    assert does(SAME_KEYS), "other keys"
elif when == "agent":
    assert does("curl -sf http://10.88.0.1:8001/agent.tar | tar -x -C /")
    assert does("systemctl daemon-reload && systemctl start cocoon-agent", 480)
elif when == "copy":
    assert "CIDATA" in run("lsblk -no LABEL /dev/vdb")
    for file, copy in WAS:
        assert not does(f"cmp -s {file} {copy}"), file
    assert not does(SAME_KEYS), "the source's keys"
console.send(b"exit\n")
assert console.leave() == 0
