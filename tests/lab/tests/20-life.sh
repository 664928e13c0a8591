# The life of a VM: run, console, stop, start, rm, and its sudden ends.
# images: tiny

# The process of a running VM. Cloud Hypervisor forks a small one beside it, which watches the size
# of the console's window and has the same command line.
vmm_pid() {
    vm_field "$1" 'd["pid"]'
}

vmm_processes() {
    pgrep -f "__vmm.*$1"
}

lab_run_boots_a_guest_that_answers() { # 240 s
    run_tiny first
    assert_eq "$(vm_field first 'd["state"]')" running "state"
    assert_has "$(cocoon vm list)" first "vm list"
    assert_eq "$(in_guest first 'hostname')" first "hostname"
    assert_has "$(in_guest first 'cat /proc/cmdline')" "boot=cocoon-overlay" "kernel command line"
    cocoon vm rm --force first
    assert_eq "$(cocoon vm list -o json)" "[]" "vm list after rm"
}

# The log is kept across boots.
second_boot_is_up() {
    [ "$(console_log orderly | grep -c 'cocoon-tiny ready')" -ge 2 ]
}

lab_stop_powers_the_guest_off_in_order() { # 300 s
    run_tiny orderly
    in_guest orderly "echo kept >/etc/kept"
    cocoon vm stop orderly
    assert_eq "$(vm_field orderly 'd["state"]')" stopped "state"
    console_log_has orderly "cocoon: unmounting" || fail "the guest was not asked to power off"
    console_log_has orderly "cocoon: unmounted"
    cocoon vm start orderly
    wait_for "$TINY_BOOT_SECONDS" "the second boot" second_boot_is_up
    assert_eq "$(in_guest orderly 'cat /etc/kept')" kept "a file from before the stop"
}

lab_guest_poweroff_is_known_to_the_next_list() { # 240 s
    run_tiny by-itself
    in_guest by-itself "{ (sleep 1; poweroff) & }"
    wait_for 60 "the end of the guest" vm_state_is by-itself stopped
    assert_has "$(cocoon vm list)" stopped "vm list"
    assert_eq "$(vmm_processes "$(vm_field by-itself 'd["id"]')" || true)" "" "process of the VM"
}

lab_killed_vm_process_is_known_to_the_next_list() { # 300 s
    run_tiny killed
    local pid
    pid=$(vmm_pid "$(vm_field killed 'd["id"]')")
    kill -9 "$pid"
    wait_for 20 "the end of process $pid" test ! -e "/proc/$pid/fd/0"
    assert_has "$(cocoon vm list -o json | json '[v["state"] for v in d]')" stopped "vm list"
    cocoon vm start killed
    wait_for 10 "running" vm_state_is killed running
}

lab_start_of_a_running_vm_does_nothing() { # 240 s
    run_tiny twice
    local id pid
    id=$(vm_field twice 'd["id"]')
    pid=$(vmm_pid "$id")
    cocoon vm start twice
    assert_eq "$(vmm_pid "$id")" "$pid" "process of the VM"
}

lab_rm_refuses_a_running_vm_without_force() { # 240 s
    run_tiny busy
    refused "force" cocoon vm rm busy
    assert_eq "$(vm_field busy 'd["state"]')" running "state"
    cocoon vm rm --force busy
    refused "busy" cocoon vm inspect busy
}

lab_two_vms_run_at_once() { # 400 s
    need_image tiny
    cocoon vm run --name one --memory 256M --storage 1G --cpu 1 "$REGISTRY/tiny:latest"
    cocoon vm run --name two --memory 256M --storage 1G --cpu 1 "$REGISTRY/tiny:latest"
    wait_console one "cocoon-tiny ready" $((2 * TINY_BOOT_SECONDS))
    wait_console two "cocoon-tiny ready" $((2 * TINY_BOOT_SECONDS))
    assert_eq "$(in_guest one hostname) $(in_guest two hostname)" "one two" "hostnames"
    local address
    address=$(vm_field two 'd["network_configs"][0]["network"]["ip"]')
    assert_has "$(in_guest one "wget -q -O - http://$address/")" hello "one reads from two"
    cocoon vm stop one two
    assert_eq "$(cocoon vm list -o json | json '[v["state"] for v in d]')" '["stopped", "stopped"]' "states"
}

lab_twenty_creates_at_once_all_succeed() { # 400 s
    need_image tiny
    local number
    for number in $(seq 20); do
        (cocoon vm create --name "many-$number" --nics 1 --storage 1G "$REGISTRY/tiny:latest" || touch /tmp/create-failed) &
    done
    wait
    [ ! -e /tmp/create-failed ] || fail "a create failed"
    assert_eq "$(cocoon vm list -q | sort -u | wc -l)" 20 "VMs"
    assert_eq "$(cocoon vm list -o json | json 'len({n["mac"] for v in d for n in v["network_configs"]})')" 20 "MACs"
    # shellcheck disable=SC2046
    cocoon vm rm $(cocoon vm list -q)
    assert_eq "$(cni_leases)" "" "leases after rm"
}

lab_console_keeps_history_and_obeys_escape_keys() { # 300 s
    run_tiny talk
    PYTHONPATH=$LAB/guest python3 - "$COCOON_BIN" "$COCOON_ROOT" <<'EOF'
import sys
from console import ESCAPE, Console
program, root = sys.argv[1:]
console = Console(program, root, "talk")
console.expect("cocoon-tiny ready", 30)
output, code = console.run("echo word; false")
assert (output, code) == ("word\n", 1), (output, code)
start = len(console.text)
console.send(ESCAPE + b"?")
console.expect(r"(?i)help|disconnect|detach|leave", 20, start)
# Doubled, it is sent: the line discipline of `cat -v` shows it.
console.send(b"cat -v\n")
console.send(ESCAPE + ESCAPE + b"\n")
console.expect(r"\^\]", 20, start)
console.send(b"\x03")
assert console.leave() == 0, console.code
again = Console(program, root, "talk")
again.expect("word", 30)
assert again.leave() == 0
other = Console(program, root, "talk", extra=["--escape-char", "^A"])
other.expect("cocoon-tiny ready", 30)
other.send(b"\x01.")
assert other.wait() == 0
EOF
}

lab_console_window_size_follows() { # 240 s
    run_tiny sized
    PYTHONPATH=$LAB/guest python3 - "$COCOON_BIN" "$COCOON_ROOT" <<'EOF'
import sys
from console import Console
console = Console(*sys.argv[1:], "sized", rows=33, columns=101)
console.expect("cocoon-tiny ready", 30)
for rows, columns in ((33, 101), (44, 122)):
    console.resize(rows, columns)
    # The kernel tells the guest by an interrupt; the guest's shell may be a little late.
    output, _ = console.run(f"n=0; while [ \"$(stty size)\" != '{rows} {columns}' ] && [ $n -lt 50 ]; do usleep 100000; n=$((n+1)); done; stty size")
    assert output == f"{rows} {columns}\n", output
assert console.leave() == 0
EOF
}

lab_two_viewers_watch_one_console() { # 240 s
    run_tiny watched
    PYTHONPATH=$LAB/guest python3 - "$COCOON_BIN" "$COCOON_ROOT" <<'EOF'
import sys
from console import Console
one, two = Console(*sys.argv[1:], "watched"), Console(*sys.argv[1:], "watched")
for console in one, two:
    console.expect("cocoon-tiny ready", 30)
one.send(b"echo for''both\n")
two.expect("^forboth", 30)
one.expect("^forboth", 30)
assert one.leave() == 0 and two.leave() == 0
EOF
}
