# After everything is removed, nothing is left. Last, since it removes the images.
# images: tiny

lab_nothing_is_left_after_rm_and_gc() { # 400 s
    run_tiny last --nics 2
    cocoon vm create --name never-started --storage 1G "$REGISTRY/tiny:latest"
    refused "no-such" cocoon vm rm no-such never-started
    cocoon vm rm --force last never-started
    local image
    for image in $(cocoon image list -o json | json 'map(.name) | join(" ")'); do
        cocoon image rm "$image"
    done
    cocoon gc
    assert_eq "$(cocoon vm list -o json) $(cocoon image list -o json)" "[] []" "records"
    assert_eq "$(pgrep -f __vmm || true)" "" "VM processes"
    assert_eq "$(netns_list | grep '^cocoon-' || true)" "" "namespaces"
    assert_eq "$(cni_leases)" "" "leases"
    assert_eq "$(ip -o link | grep -E ' (veth|tap)' || true)" "" "links"
    assert_eq "$(find "$COCOON_ROOT/blobs" "$COCOON_ROOT/boot" -type f 2>/dev/null)" "" "blobs and boot files"
    assert_eq "$(find "$COCOON_ROOT/run/vms" -mindepth 1 2>/dev/null)" "" "folders of VMs"
}
