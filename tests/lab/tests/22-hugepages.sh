# Guest memory out of the host's pool of huge pages.
# images: tiny

POOL=/sys/kernel/mm/hugepages/hugepages-2048kB

# pool_of PAGES: the host has so many.
pool_of() {
    # Whole pages are found where caches are not.
    echo 3 >/proc/sys/vm/drop_caches
    echo 1 >/proc/sys/vm/compact_memory
    echo "$1" >$POOL/nr_hugepages
    [ "$(<$POOL/nr_hugepages)" = "$1" ] || skip "the lab host has no $1 whole huge pages, but $(<$POOL/nr_hugepages)"
}

# Those that nobody has, or has been promised.
free_pages() {
    echo $(($(<$POOL/free_hugepages) - $(<$POOL/resv_hugepages)))
}

all_are_free() {
    [ "$(free_pages)" = 140 ]
}

# A VM of run_tiny takes 128.
lab_huge_pages_hold_the_guests_memory_its_clones_and_come_back() { # 300 s
    only_if_long micro
    local how
    at_exit 'echo 0 >$POOL/nr_hugepages'
    pool_of 100
    need_image tiny
    refused "of huge pages are needed" cocoon vm run --name huge --memory 256M --hugepages on "$REGISTRY/tiny:latest"
    assert_has "$refused_with" "hint: " "the refusal"
    cocoon vm rm --force huge 2>/dev/null || true
    pool_of 140
    run_tiny huge --hugepages on
    assert_eq "$(free_pages)" 12 "free huge pages beside a VM"
    assert_eq "$(vm_field huge .hugepages_in_use)" true "inspect"
    assert_has "$(in_guest huge 'echo before >/etc/word; hostname')" huge "the guest"
    at_exit 'cocoon snapshot rm in-huge'
    cocoon snapshot save --name in-huge huge
    refused "of them are needed" cocoon vm clone in-huge
    # Its own pages are free by the time when a restore needs them.
    cocoon vm restore huge in-huge
    # micro maps the saved file, and the pool has no pages for one.
    [ "$COCOON_ENGINE" = micro ] && how=copied || how=on-demand
    assert_eq "$(vm_field huge .runtime.restored_memory)" $how "how a VM in huge pages was restored"
    assert_eq "$(cocoon vm exec huge -- cat /etc/word)" before "a file of the restored VM"
    cocoon vm rm --force huge
    wait_for 20 "all huge pages" all_are_free
    cocoon vm clone --name clone in-huge
    assert_eq "$(vm_field clone .hugepages_in_use) $(free_pages)" "true 12" "a clone"
    assert_eq "$(cocoon vm exec clone -- cat /etc/word)" before "a file of the clone"
    cocoon vm rm --force clone
    wait_for 20 "all huge pages" all_are_free
}
