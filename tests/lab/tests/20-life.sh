# The life of a VM: run, console, stop, start, rm, and its sudden ends.
# images: tiny

# The process of a running VM. Cloud Hypervisor forks a small one beside it, which watches the size
# of the console's window and has the same command line.
vmm_pid() {
    vm_field "$1" .pid
}

vmm_processes() {
    pgrep -f "__vmm.*$1"
}

lab_run_boots_a_guest_that_answers_until_rm_force() { # 240 s
    run_tiny first
    assert_eq "$(vm_field first '.state + " " + .engine')" "running $COCOON_ENGINE" "state and engine"
    assert_has "$(cocoon vm list)" first "vm list"
    local said
    said=$(in_guest first 'hostname; cat /proc/cmdline')
    assert_eq "${said%%$'\n'*}" first "hostname"
    assert_has "$said" "boot=cocoon-overlay" "kernel command line"
    # A second start changes nothing.
    local pid
    pid=$(vmm_pid first)
    cocoon vm start first
    assert_eq "$(vmm_pid first)" "$pid" "process of the VM after a second start"
    refused "force" cocoon vm rm first
    assert_eq "$(vm_field first .state)" running "state after a refused rm"
    cocoon vm rm --force first
    refused "first" cocoon vm inspect first
    assert_eq "$(cocoon vm list -o json)" "[]" "vm list after rm"
}

# The log is kept across boots.
second_boot_is_up() {
    [ "$(console_log orderly | grep -c 'cocoon-tiny ready')" -ge 2 ]
}

lab_stop_and_the_guests_own_poweroff_end_it_in_order() { # 300 s
    run_tiny orderly
    in_guest orderly "echo kept >/etc/kept"
    cocoon vm stop orderly
    assert_eq "$(vm_field orderly .state)" stopped "state"
    console_log_has orderly "cocoon: unmounting" || fail "the guest was not asked to power off"
    console_log_has orderly "cocoon: unmounted"
    cocoon vm start orderly
    wait_for "$TINY_BOOT_SECONDS" "the second boot" second_boot_is_up
    assert_has "$(in_guest orderly "cat /etc/kept; { (sleep 1; poweroff) & }")" kept "a file from before the stop"
    wait_for 60 "the end of the guest" vm_state_is orderly stopped
    assert_has "$(cocoon vm list)" stopped "vm list"
    assert_eq "$(vmm_processes "$(vm_field orderly .id)" || true)" "" "process of the VM"
}

# A process lets go of its locks with the end of its last thread, just before that is a zombie; its first
# one may have been one for a while.
process_is_over() {
    ! grep -qs '^State:[[:space:]]*[^ZX[:space:]]' /proc/"$1"/task/*/status
}

lab_killed_vm_process_is_known_to_the_next_list() { # 300 s
    need_image tiny
    cocoon vm run --name killed --memory 256M --storage 1G --cpu 1 "$REGISTRY/tiny:latest"
    local pid
    pid=$(vmm_pid killed)
    kill -9 "$pid"
    wait_for 20 "the end of process $pid" process_is_over "$pid"
    assert_has "$(cocoon vm list -o json | json 'map(.state)')" stopped "vm list"
    cocoon vm start killed
    wait_for 10 "running" vm_state_is killed running
}

lab_two_vms_run_at_once() { # 400 s
    only_if_long micro
    need_image tiny
    cocoon vm run --name one --memory 256M --storage 1G --cpu 1 "$REGISTRY/tiny:latest"
    cocoon vm run --name two --memory 256M --storage 1G --cpu 1 "$REGISTRY/tiny:latest"
    wait_console one "cocoon-tiny ready" $((2 * TINY_BOOT_SECONDS))
    wait_console two "cocoon-tiny ready" $((2 * TINY_BOOT_SECONDS))
    assert_eq "$(in_guest one hostname) $(in_guest two hostname)" "one two" "hostnames"
    local address
    address=$(vm_field two '.network_configs[0].network.ip')
    assert_has "$(in_guest one "wget -q -O - http://$address/")" hello "one reads from two"
    cocoon vm stop one two
    assert_eq "$(cocoon vm list -o json | json 'map(.state)')" '["stopped","stopped"]' "states"
}
