# What cannot be done is refused with a sentence and a hint, and leaves nothing.
# images: tiny
# engines: none
# machine: none

lab_taken_name_is_refused() {
    need_image tiny
    cocoon vm create --name taken --storage 1G "$REGISTRY/tiny:latest"
    local leases
    leases=$(cni_leases)
    refused "taken" cocoon vm create --name taken --storage 1G "$REGISTRY/tiny:latest"
    assert_eq "$(cni_leases)" "$leases" "leases"
    assert_eq "$(cocoon vm list -q | wc -l)" 1 "VMs"
}

lab_unknown_image_and_vm_are_refused() {
    need_image tiny
    refused "no-such" cocoon vm create --name x "$REGISTRY/no-such:latest"
    refused "no-such" cocoon vm start no-such
    refused "no-such" cocoon image pull "$REGISTRY/no-such:latest"
    refused "no-such" cocoon image rm no-such
    assert_eq "$(cocoon vm list -o json)" "[]" "VMs"
}

lab_bad_flags_end_with_code_2() {
    need_image tiny
    local flag code
    for flag in "--memory 12X" "--cpu zero" "--storage -1" "--no-such-flag" "--name bad/name"; do
        code=0
        # shellcheck disable=SC2086
        cocoon vm create $flag "$REGISTRY/tiny:latest" >/dev/null 2>/lab/said || code=$?
        assert_eq $code 2 "exit code for $flag"
        [ -s /lab/said ] || fail "nothing was said about $flag"
    done
}

lab_unknown_config_key_is_refused_with_its_line() {
    need_cocoon
    printf 'pool_size = 2\nno_such_key = 1\n' >/lab/bad.toml
    refused "no_such_key" cocoon --config /lab/bad.toml vm list
    assert_has "$refused_with" "2" "the line's number"
}

lab_missing_conflist_is_refused() {
    need_image tiny
    mkdir -p /lab/empty
    refused "hint" cocoon --cni-conf-dir /lab/empty vm create --name nonet --storage 1G "$REGISTRY/tiny:latest"
    assert_eq "$(cocoon vm list -o json)" "[]" "VMs"
    cocoon --cni-conf-dir /lab/empty vm create --name nonet --nics 0 --storage 1G "$REGISTRY/tiny:latest"
}

lab_registry_that_is_down_is_named() {
    need_cocoon
    stop_registry
    refused "$REGISTRY" cocoon image pull "$REGISTRY/anything:latest"
    start_registry
}

lab_other_users_are_told_that_they_are_not_root() {
    need_image tiny
    # Where the program lies may be closed to others.
    install -m 755 "$COCOON_BIN" /tmp/cocoon-of-all
    refused "root" setpriv --reuid 65534 --regid 65534 --clear-groups /tmp/cocoon-of-all \
        --root-dir /tmp/not-root vm create --name x "$REGISTRY/tiny:latest"
}

lab_full_disk_is_refused_and_leaves_nothing() { # 240 s
    need_cocoon
    need_pushed tiny
    mkdir -p /lab/full
    mount -t tmpfs -o size=8M full /lab/full
    at_exit umount -l /lab/full
    refused "space" "$COCOON_BIN" --root-dir /lab/full --log-dir /lab/full/log image pull "$REGISTRY/tiny:latest"
    assert_eq "$("$COCOON_BIN" --root-dir /lab/full --log-dir /lab/full/log image list -o json)" "[]" "images"
    "$COCOON_BIN" --root-dir /lab/full --log-dir /lab/full/log gc
    assert_eq "$(find /lab/full/blobs -type f 2>/dev/null | wc -l)" 0 "blobs"
}
