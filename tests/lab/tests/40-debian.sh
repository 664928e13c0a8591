# A distribution with systemd, from power on to power off.
# images: debian12

lab_debian_boots_to_login_with_its_network() { # 900 s
    need_image debian12
    cocoon vm run --name debian --memory 1G --cpu 2 --nics 2 --storage 4G "$REGISTRY/debian12:latest"
    wait_console debian "debian login:" "$DEBIAN_BOOT_SECONDS"
    local address
    address=$(vm_field debian '[.network_configs[].network.ip] | join(" ")')
    PYTHONPATH=$LAB/guest python3 - "$COCOON_BIN" "$COCOON_ROOT" "${address% *}" "${address#* }" <<'EOF'
import sys
from console import Console
program, root, *addresses = sys.argv[1:]
console = Console(program, root, "debian")
console.expect("login: ", 60)
console.send(b"root\n")
console.expect("Password: ?", 120)
console.send(b"cocoon\n")
console.expect(r"root@debian:~# ", 240)
def run(command):
    return console.run(command, 120)[0]
assert run("hostname").strip().endswith("debian")
for number, address in enumerate(addresses):
    assert f"inet {address}/16" in run(f"ip addr show eth{number}"), number
assert "default via 10.88.0.1 dev eth0" in run("ip route")
assert "nameserver" in run("cat /etc/resolv.conf")
assert run("nproc").strip().endswith("2")
assert "overlay" in run("mount | grep ' / '")
assert console.run("ping -c 1 -W 30 10.88.0.1", 120)[1] == 0
console.send(b"exit\n")
assert console.leave() == 0
EOF
    # The agent, as a service of systemd.
    assert_eq "$(cocoon vm exec --wait 60 debian -- sh -c 'hostname; systemctl is-active cocoon-agent')" "$(printf 'debian\nactive')" "what the agent says"
    cocoon vm stop debian
    assert_eq "$(vm_field debian .state)" stopped "state"
    console_log_has debian "Power down|poweroff.target|System Power Off" || fail "the guest did not shut down in order"
}
