# Snapshots brought to life: clones, and the way back.
# images: tiny

# says VM COMMAND runs a command by the guest's agent: the console of a clone is empty until somebody
# types, and a test cannot tell that from a guest that is dead.
says() {
    cocoon vm exec "$1" -- sh -c "$2"
}

# count_of VM prints how far the guest has counted.
count_of() {
    says "$1" 'cat /run/count'
}

# Counts in memory alone, so whoever goes on with it has the saved memory.
COUNTER='{ (n=0; while :; do n=$((n+1)); echo $n >/run/count; usleep 100000; done) >/dev/null 2>&1 & }'

addresses_of() {
    vm_field "$1" '[.network_configs[] | .mac, .network.ip] | join(" ")'
}

lab_clones_go_on_where_the_snapshot_stood_and_restore_takes_back() { # 500 s
    run_tiny source
    in_guest source "echo before >/etc/word; $COUNTER"
    local own saved vm first mac address late
    own=$(addresses_of source)
    at_exit 'cocoon snapshot rm moment'
    cocoon snapshot save --name moment source >/dev/null
    says source 'echo after >/etc/word; sync'
    saved=$(count_of source)

    # Two at once, beside the VM that was saved.
    cocoon vm clone --name one moment &
    cocoon vm clone --name two moment
    wait $!
    for vm in one two; do
        assert_eq "$(vm_field $vm '.state + " " + .engine')" "running $COCOON_ENGINE" "state and engine of $vm"
        assert_eq "$(says $vm 'cat /etc/word')" before "a file of $vm"
        # Who it is, it learned before its network opened.
        assert_eq "$(says $vm hostname)" $vm "hostname of $vm"
        read -r mac address <<<"$(addresses_of $vm)"
        assert_has "$(says $vm 'ip addr show eth0')" "$mac" "eth0 of $vm"
        assert_has "$(says $vm 'ip addr show eth0; ip route')" "inet $address/16" "eth0 of $vm"
        ping -c 1 -W 20 "$address"
        late=$(($(date +%s) - $(says $vm 'date +%s')))
        [ ${late#-} -le 5 ] || fail "the clock of $vm is $late s late"
        first=$(count_of $vm)
        [ "$first" -gt 0 ] || fail "$vm does not count"
        [ "$(count_of $vm)" -gt "$first" ] || fail "$vm counts no further than $first"
    done
    assert_eq "$(printf '%s\n' "$own" "$(addresses_of one)" "$(addresses_of two)" | tr ' ' '\n' | sort -u | wc -l)" 6 \
        "different MACs and addresses"
    assert_eq "$(says source 'cat /etc/word')" after "a file of the VM that was saved"
    [ "$(count_of source)" -gt "$saved" ] || fail "the VM that was saved stands still"
    ping -c 1 -W 20 "${own#* }"

    refused "no snapshot of VM one" cocoon vm restore one moment
    refused "at least what was saved" cocoon vm clone --memory 64M moment
    assert_eq "$(cocoon vm list -o json | jq length)" 3 "VMs after a refused clone"

    # Its files, its memory, its addresses.
    cocoon vm restore source moment >/dev/null
    assert_eq "$(says source 'cat /etc/word')" before "a file after the restore"
    assert_eq "$(addresses_of source)" "$own" "MAC and address after the restore"
    ping -c 1 -W 20 "${own#* }"
    cocoon vm stop --force source
    cocoon vm restore source moment >/dev/null
    assert_eq "$(vm_field source .state)" running "state of a restored VM that was stopped"
    first=$(count_of source)

    # Whoever lives on a snapshot keeps what he needs of it.
    cocoon snapshot rm moment
    for vm in source one two; do
        first=$(count_of $vm)
        [ "$(count_of $vm)" -gt "$first" ] || fail "$vm counts no further than $first"
        cocoon vm rm --force $vm
    done
    assert_eq "$(cocoon gc --dry-run -o json | jq -c .removed)" "[]" "what is left"
}
