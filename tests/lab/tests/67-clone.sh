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

counts_above() {
    [ "$(count_of "$1")" -gt "$2" ]
}

# counts_on VM: the guest goes on counting; it takes a while on processors that three guests share.
counts_on() {
    local before
    before=$(count_of "$1")
    [ "$before" -gt 0 ] || fail "$1 does not count"
    wait_for 30 "$1 to count on from $before" counts_above "$1" "$before"
}

addresses_of() {
    vm_field "$1" '[.network_configs[] | .mac, .network.ip] | join(" ")'
}

# has VM CPUS KB KB checks how many processors a guest has, and that it has at least so much memory and
# disk for its root.
has() {
    assert_eq "$(says "$1" nproc)" "$2" "processors of $1"
    local memory disk
    memory=$(says "$1" "awk '/^MemTotal/ {print \$2}' /proc/meminfo")
    [ "$memory" -ge "$3" ] || fail "$1 has $memory kB of memory, not $3"
    disk=$(says "$1" "df -k / | awk 'END {print \$2}'")
    [ "$disk" -ge "$4" ] || fail "the root of $1 has $disk kB, not $4"
}

# taken_by FOLDER prints the KiB that its files take, and those that they seem to have.
taken_by() {
    echo "$(du -sk "$1" | cut -f1) of $(du -sk --apparent-size "$1" | cut -f1)"
}

# From one root folder to another, as from one host to another.
a_snapshot_lives_in_another_root_too() {
    local here elsewhere=/lab/another
    here=$(cocoon snapshot inspect moment | json .id)
    cocoon snapshot export moment /lab/moment.tar.zst
    at_exit "[ ! -e $elsewhere ] || COCOON_ROOT=$elsewhere cocoon vm rm --force far 2>/dev/null"
    (
        here=$COCOON_ROOT/snapshots/$here COCOON_ROOT=$elsewhere
        cocoon image pull "$REGISTRY/tiny:latest" >/dev/null
        cocoon snapshot import /lab/moment.tar.zst >/dev/null
        there=$COCOON_ROOT/snapshots/$(cocoon snapshot inspect moment | json .id)
        echo "the snapshot: $(taken_by "$here") KiB; exported: $(du -k /lab/moment.tar.zst | cut -f1) KiB; imported: $(taken_by "$there") KiB"
        # As sparse as it was, but for what a block of a file system makes of it.
        [ "$(du -sk "$there" | cut -f1)" -le $(($(du -sk "$here" | cut -f1) + 4096)) ] || fail "the imported snapshot is not sparse"
        cocoon vm clone --name far moment
        assert_eq "$(says far 'cat /etc/word; hostname')" "$(printf 'before\nfar')" "a clone in another root"
        ping -c 1 -W 20 "$(vm_field far '.network_configs[0].network.ip')"
        counts_on far
        cocoon vm rm --force far
        cocoon snapshot rm moment
    )
    rm -r /lab/moment.tar.zst $elsewhere
}

lab_clones_go_on_where_the_snapshot_stood_and_restore_takes_back() { # 1200 s
    only_if_long micro
    run_tiny source
    # What the pull left, if it was this test's: the locks of the layers.
    cocoon gc >/dev/null
    # A conversation that the saved guest is in the middle of, and its clones are not.
    cocoon vm exec --wait "$TINY_BOOT_SECONDS" source -- true
    cocoon vm exec source -- sleep 100000 2>/dev/null &
    at_exit "kill $! 2>/dev/null || true"
    in_guest source "echo before >/etc/word; $COUNTER"
    local own saved vm mac address late
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
        counts_on $vm
    done
    assert_eq "$(printf '%s\n' "$own" "$(addresses_of one)" "$(addresses_of two)" | tr ' ' '\n' | sort -u | wc -l)" 6 \
        "different MACs and addresses"
    assert_eq "$(says source 'cat /etc/word')" after "a file of the VM that was saved"
    [ "$(count_of source)" -gt "$saved" ] || fail "the VM that was saved stands still"
    ping -c 1 -W 20 "${own#* }"

    refused "no snapshot of VM one" cocoon vm restore one moment
    refused "at least what was saved, 1, not 0" cocoon vm clone --cpu 0 moment
    refused "at least what was saved" cocoon vm clone --memory 64M moment
    refused "at least what was saved" cocoon vm clone --storage 512M moment
    refused "a multiple of 128MiB more" cocoon vm clone --memory 300M moment
    refused "room for at most" cocoon vm clone --cpu 200 moment
    refused "room for at most" cocoon vm clone --memory 64T moment
    refused "cannot have 2" cocoon vm clone --nics 2 moment
    refused "cannot have 0" cocoon vm restore --nics 0 source moment
    assert_eq "$(cocoon vm list -o json | jq length)" 3 "VMs after refused clones"

    a_snapshot_lives_in_another_root_too

    # Larger than what was saved; and so is what is saved of that.
    cocoon vm clone --name large --nics 1 --cpu 4 --memory 512M --storage 2G moment
    has large 4 450000 1900000
    assert_eq "$(says large 'cat /etc/word')" before "a file of the larger clone"
    assert_eq "$(vm_field large '.config | [.cpu, .memory, .storage] | join(" ")')" "4 536870912 2147483648" "sizes of the larger clone"
    at_exit 'cocoon snapshot rm larger'
    cocoon snapshot save --name larger large >/dev/null
    refused "at least what was saved, 4" cocoon vm clone --cpu 1 larger
    cocoon vm clone --name larger larger
    has larger 4 450000 1900000
    cocoon vm rm --force larger
    cocoon vm stop --force large
    cocoon vm start large
    cocoon vm exec --wait "$TINY_BOOT_SECONDS" large -- true
    has large 4 450000 1900000
    cocoon vm rm --force large
    cocoon snapshot rm larger

    # Its files, its memory, its addresses; and a processor and a gigabyte more, which it then keeps.
    cocoon vm restore --cpu 2 --storage 2G source moment >/dev/null
    has source 2 150000 1900000
    assert_eq "$(says source 'cat /etc/word')" before "a file after the restore"
    assert_eq "$(addresses_of source)" "$own" "MAC and address after the restore"
    ping -c 1 -W 20 "${own#* }"
    cocoon vm stop --force source
    cocoon vm restore source moment >/dev/null
    assert_eq "$(vm_field source '.state + " " + (.config.cpu | tostring)')" "running 2" "a restored VM that was stopped"
    has source 2 150000 1900000

    # Whoever lives on a snapshot keeps what he needs of it.
    cocoon snapshot rm moment
    for vm in source one two; do
        counts_on $vm
        cocoon vm rm --force $vm
    done
    assert_eq "$(cocoon gc --dry-run -o json | jq -c .removed)" "[]" "what is left"
}
