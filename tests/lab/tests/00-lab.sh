# The lab itself: what the other tests stand on. Needs no cocoon.
# engines: none

lab_kvm_makes_a_virtual_machine() {
    python3 - <<'EOF'
import fcntl, os
KVM_GET_API_VERSION, KVM_CREATE_VM, KVM_CREATE_VCPU = 0xAE00, 0xAE01, 0xAE41
kvm = os.open("/dev/kvm", os.O_RDWR)
assert fcntl.ioctl(kvm, KVM_GET_API_VERSION, 0) == 12
vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
fcntl.ioctl(vm, KVM_CREATE_VCPU, 0)
EOF
    grep -qw svm /proc/cpuinfo
}

lab_kernel_has_what_networks_need() {
    ip netns add probe
    ip -n probe link add v0 type veth peer name v1
    ip -n probe tuntap add t0 mode tap multi_queue vnet_hdr
    tc -n probe qdisc add dev v0 ingress
    tc -n probe qdisc add dev t0 ingress
    tc -n probe filter add dev v0 parent ffff: protocol all u32 match u8 0 0 action mirred egress redirect dev t0
    ip netns del probe
    assert_eq "$(sysctl -n net.ipv4.ip_forward)" 1 "ip_forward"
}

lab_cni_bridge_adds_and_deletes() {
    cni_setup 1400
    ip netns add cni-probe
    local plugin=/opt/cni/bin/bridge config
    config=$(json '.plugins[0] + {cniVersion, name}' </etc/cni/net.d/10-lab.conflist)
    export CNI_CONTAINERID=probe CNI_NETNS=/var/run/netns/cni-probe CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin
    local address
    address=$(CNI_COMMAND=ADD $plugin <<<"$config" | json '.ips[0].address')
    assert_has "$(ip -n cni-probe addr show eth0)" "$address" "eth0 of the namespace"
    assert_has "$(ip -n cni-probe link show eth0)" "mtu 1400" "eth0 of the namespace"
    ip netns exec cni-probe ping -c 1 -W 5 10.88.0.1
    assert_eq "$(cni_leases)" "${address%/*}" "leases"
    CNI_COMMAND=DEL $plugin <<<"$config"
    assert_eq "$(cni_leases)" "" "leases after DEL"
    ip netns del cni-probe
    ip link del cni0
    rm /etc/cni/net.d/10-lab.conflist
}

lab_kernel_mounts_erofs() {
    mkdir -p /lab/probe/tree /lab/probe/mnt
    echo content >/lab/probe/tree/file
    mkfs.erofs --quiet /lab/probe/image /lab/probe/tree
    mount -t erofs -o loop,ro /lab/probe/image /lab/probe/mnt
    assert_eq "$(cat /lab/probe/mnt/file)" content "the file"
    umount /lab/probe/mnt
    rm -r /lab/probe
}
