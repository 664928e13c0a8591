#!/usr/bin/env python3
"""What a cloud image's guest says of itself, on its console.

    cloud.py first|second PROGRAM ROOT ADDRESS...

After `first`, the guest is rebooting.
"""
import sys

from console import Console

when, program, root, *addresses = sys.argv[1:]
console = Console(program, root, "cloud")
if when == "first":
    console.send(b"\n")
# A console that was attached after a reset has nothing of what was before it.
console.expect("login: ", 120 if when == "first" else 1200)
console.send(b"root\n")
console.expect("Password: ?", 240)
console.send(b"cocoon\n")
console.expect(r"root@cloud:~# ", 480)


def run(command, seconds=240):
    return console.run(command, seconds)[0]


# What it is, both times.
assert run("hostname").strip().endswith("cloud")
for address in addresses:
    said = run(f"ip -4 -o addr show | grep -F 'inet {address}/16'")
    assert address in said, said
routes = run("ip route show default")
assert "via 10.88.0.1" in routes and "metric 100" in routes and "metric 101" in routes, routes
servers = run("resolvectl dns | tr '\\n' ' '")
assert "10.88.0.1" in servers and "9.9.9.9" in servers, servers
assert console.run("ping -c 1 -W 60 10.88.0.1", 240)[1] == 0

if when == "first":
    said = run("cloud-init status --wait", 900)
    assert "done" in said, said
    assert "CIDATA" in run("lsblk -no LABEL /dev/vdb")
    size = int(run("df --output=size -B1M / | tail -n 1").split()[-1])
    assert size > 4000, f"the root file system has {size} MiB of 6 GiB"
    run("cp /etc/machine-id /var/lib/cloud/data/instance-id /root; cat /etc/ssh/ssh_host_*.pub >/root/keys")
    # Another command line stands for another kernel.
    setting = 'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX cocoon.test=1"'
    assert console.run(f"echo '{setting}' >/etc/default/grub.d/99_test.cfg && update-grub", 600)[1] == 0
    console.send(b"reboot\n")
else:
    assert console.run("test ! -e /dev/vdb")[1] == 0, "the volume of cloud-init is still there"
    assert "cocoon.test=1" in run("cat /proc/cmdline")
    # cloud-init says of itself that it did not run, or that it ran for nothing new.
    said = run("cloud-init status", 480)
    assert "disabled" in said or "done" in said, said
    for file, copy in [("/etc/machine-id", "/root/machine-id"), ("/var/lib/cloud/data/instance-id", "/root/instance-id")]:
        assert console.run(f"cmp {file} {copy}")[1] == 0, file
    assert console.run("cat /etc/ssh/ssh_host_*.pub | cmp - /root/keys")[1] == 0, "other keys"
    console.send(b"exit\n")
    assert console.leave() == 0
