# VMs that are made and never started.
# images: tiny
# engines: none
# machine: none

lab_twenty_creates_at_once_all_succeed() { # 400 s
    need_image tiny
    local number
    for number in $(seq 20); do
        (cocoon vm create --name "many-$number" --nics 1 --storage 1G "$REGISTRY/tiny:latest" || touch /tmp/create-failed) &
    done
    wait
    [ ! -e /tmp/create-failed ] || fail "a create failed"
    assert_eq "$(cocoon vm list -q | sort -u | wc -l)" 20 "VMs"
    assert_eq "$(cocoon vm list -o json | json '[.[].network_configs[].mac] | unique | length')" 20 "MACs"
    # shellcheck disable=SC2046
    cocoon vm rm $(cocoon vm list -q)
    assert_eq "$(cni_leases)" "" "leases after rm"
}
