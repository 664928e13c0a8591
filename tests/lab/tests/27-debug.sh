# A VM by hand: the script that `vm debug` prints, in a shell.
# images: tiny

lab_a_pasted_script_boots_a_guest_of_no_record_that_ends_by_itself() { # 300 s
    need_image tiny
    # What another test's image left.
    cocoon gc >/dev/null
    [ "$COCOON_ENGINE" = micro ] || command -v cloud-hypervisor >/dev/null ||
        skip "the lab host has no cloud-hypervisor program"
    local vms shell
    mkdir /lab/desk
    at_exit 'cd /; rm -rf /lab/desk'
    cd /lab/desk
    vms=$(cocoon vm list -q)
    cocoon vm debug --name mine --nics 0 --cpu 1 --memory 256M --storage 1G "$REGISTRY/tiny:latest" >script
    assert_eq "$(ls)" script "what a dry run makes"
    mkfifo keys
    # A group of its own, so that whatever fails, its VM ends.
    setsid bash script <>keys >said 2>&1 &
    shell=$!
    at_exit "kill -- -$shell 2>/dev/null || true"
    wait_for "$TINY_BOOT_SECONDS" "the guest's userland" file_has said "cocoon-tiny ready"
    assert_eq "$(cocoon vm list -q)" "$vms" "VMs in the records"
    # What is typed reaches the guest; its echo is not the answer.
    echo "echo \$((40 + 2)) is \$(cat /proc/sys/kernel/hostname)" >keys
    wait_for 60 "the guest's answer" file_has said "42 is mine"
    echo poweroff >keys
    wait_for 120 "the end of the shell" test ! -e "/proc/$shell/exe"
    wait $shell || fail "the script failed: $(tail -n 5 said)"
    cocoon gc --dry-run -o json >removed
    assert_eq "$(json '.removed | length' <removed)" 0 "what gc would remove"
}
