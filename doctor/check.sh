#!/bin/bash
# Checks whether this host can run cocoon's VMs, and how well: the checks of `cocoon doctor`, by the same
# names, for a host that has no cocoon yet. It needs bash, coreutils and awk; with perl, ip, tc, unshare and
# iptables it sees more, and what it could not look at it says.
#
#     check.sh                 checks only: PASS, WARN or FAIL for each requirement, and its fix
#     check.sh --fix           makes folders, loads modules, sets ip_forward, adds iptables rules, writes a
#                              CNI configuration where there is none; nothing that you have is replaced
#     check.sh --upgrade       the same, and installs UEFI firmware and CNI plugins, known by their SHA-256
#     --subnet=CIDR            addresses of guests in the CNI configuration (default 10.88.0.0/16)
#     --manifest=FILE          install what this copy of firmware/manifest.toml lists, such as a mirror's
#
# Folders: COCOON_ROOT_DIR COCOON_RUN_DIR COCOON_LOG_DIR COCOON_CNI_CONF_DIR COCOON_CNI_BIN_DIR
# COCOON_FIRMWARE. Exit codes: 0 no check failed, 1 one did, 2 wrong usage.
set -uo pipefail

root_dir=${COCOON_ROOT_DIR:-/var/lib/cocoon}
run_dir=${COCOON_RUN_DIR:-$root_dir/run}
log_dir=${COCOON_LOG_DIR:-/var/log/cocoon}
conf_dir=${COCOON_CNI_CONF_DIR:-/etc/cni/net.d}
bin_dir=${COCOON_CNI_BIN_DIR:-/opt/cni/bin}
firmware=${COCOON_FIRMWARE:-$root_dir/firmware/CLOUDHV.fd}
ignore_kvm=${COCOON_IGNORE_KVM_CHECK:-}
# Many users do not have the administrators' programs in PATH; cocoon runs mkfs.ext4 by the user's own.
user_path=$PATH
PATH=$PATH:/usr/sbin:/sbin
export LC_ALL=C

# A VM, or a processor, that takes longer is slow: a healthy host takes 0.1 to 0.3 ms.
readonly slow_us=2000
readonly gib=$((1 << 30))

# install, machine, SHA-256, address: the same as in firmware/manifest.toml, which says where from.
pins() {
    cat <<'EOF'
firmware x86_64 dc2fc8f0e43b96712d9fccc52a3a590769606412b3e1bc911d217addd3bef624 https://github.com/cloud-hypervisor/edk2/releases/download/ch-97eeb7b09/CLOUDHV.fd
small-firmware x86_64 4a0a1e977368f6b15d2198a216bdedf9a350bf5e5ae07e29e695373ec16ad958 https://github.com/cloud-hypervisor/rust-hypervisor-firmware/releases/download/0.5.0/hypervisor-fw
cni-plugins x86_64 b98f74a0f8522f0a83867178729c1aa70f2158f90c45a2ca8fa791db1c76b303 https://github.com/containernetworking/plugins/releases/download/v1.9.1/cni-plugins-linux-amd64-v1.9.1.tgz
cni-plugins aarch64 56171987d3947707c3563db2f4001bccaf50fd63468611b9f3cbecb1375ee7ec https://github.com/containernetworking/plugins/releases/download/v1.9.1/cni-plugins-linux-arm64-v1.9.1.tgz
EOF
}

note() { echo "$*" >&2; }

usage() {
    note "error: $1"
    note "usage: ${0##*/} [--fix] [--upgrade] [--subnet=CIDR] [--manifest=FILE]"
    exit 2
}

# --- findings ---------------------------------------------------------------------------------------

passed=0 warned=0 failed=0 verdicts=''

# found VERDICT NAME SAYS [FIX]
found() {
    case $1 in
    PASS) passed=$((passed + 1)) ;;
    WARN) warned=$((warned + 1)) ;;
    FAIL) failed=$((failed + 1)) ;;
    esac
    verdicts+="$2=$1 "
    # The check before a repair is for the repair alone.
    [ "$quiet" = yes ] && return
    printf '%s  %-20s%s\n' "$1" "$2" "$3"
    [ -z "${4:-}" ] || printf '%26sfix: %s\n' '' "$4"
}

# is_well NAME: whether the last checks passed it.
is_well() { [[ " $verdicts" == *" $1=PASS "* ]]; }

has() { command -v "$1" >/dev/null 2>&1; }

is_root() { [ "$(id -u)" = 0 ]; }

# --- the machine --------------------------------------------------------------------------------------

# The processor's mark of virtualization: vmx, svm, or nothing.
virtualization() {
    awk '/^flags/ { for (i = 3; i <= NF; i++) if ($i == "vmx" || $i == "svm") { print $i; exit } exit }' /proc/cpuinfo
}

# Microseconds that KVM takes for a VM and for its first processor: medians of five. As `sys::kvm::costs`.
kvm_costs() {
    perl -e '
        my ($arch) = @ARGV;
        my $clock = $arch eq "aarch64" ? 113 : 228;
        sub now { my $t = pack("qq", 0, 0); syscall($clock, 1, $t); my ($s, $n) = unpack("qq", $t); $s * 1e6 + $n / 1e3 }
        open(my $kvm, "+<", "/dev/kvm") or die "$!\n";
        my (@vms, @vcpus);
        for (1 .. 5) {
            my $begun = now();
            my $fd = ioctl($kvm, 0xAE01, 0) or die "KVM_CREATE_VM: $!\n";
            push @vms, now() - $begun;
            open(my $vm, "+<&=", int($fd)) or die "$!\n";
            $arch ne "x86_64" or ioctl($vm, 0xAE60, 0) or die "KVM_CREATE_IRQCHIP: $!\n";
            $begun = now();
            my $vcpu_fd = ioctl($vm, 0xAE41, 0) or die "KVM_CREATE_VCPU: $!\n";
            push @vcpus, now() - $begun;
            open(my $vcpu, "+<&=", int($vcpu_fd)) or die "$!\n";
        }
        printf("%d %d\n", (sort { $a <=> $b } @vms)[2], (sort { $a <=> $b } @vcpus)[2]);
    ' "$(uname -m)" 2>&1
}

check_user() {
    if is_root; then
        found PASS root-user "this is root"
    else
        found WARN root-user "this is not root: commands that make VMs will refuse, and some checks cannot look" \
            "run cocoon as root, for example by sudo"
    fi
}

check_processor() {
    local flag verdict=FAIL
    flag=$(virtualization)
    [ -z "$ignore_kvm" ] || verdict=WARN
    if [ -n "$flag" ]; then
        found PASS cpu-virtualization "the processor shows $flag"
    elif [ "$(uname -m)" != x86_64 ]; then
        found PASS cpu-virtualization "see kvm"
    else
        found $verdict cpu-virtualization "the processor shows neither svm nor vmx" \
            "enable virtualization in the firmware, or nested virtualization on the host that runs this one"
    fi
}

check_kvm() {
    if [ ! -e /dev/kvm ]; then
        found FAIL kvm "this host has no /dev/kvm" \
            "enable virtualization in the firmware, and load the module (${0##*/} --fix, or: modprobe kvm_intel or kvm_amd)"
    elif ! { : <>/dev/kvm; } 2>/dev/null; then
        found FAIL kvm "/dev/kvm does not open for this user" \
            "run cocoon as root, or as a member of the device's group (kvm)"
    elif [ "$(uname -m)" = x86_64 ] && [ -z "$ignore_kvm" ] && [ -z "$(virtualization)" ]; then
        found FAIL kvm "/dev/kvm is there, but the processor shows neither svm nor vmx: ordinary kernels do not run on such a KVM" \
            "use a host with hardware or nested virtualization; to try all the same: COCOON_IGNORE_KVM_CHECK=1"
    else
        found PASS kvm "/dev/kvm opens, and can run ordinary guests"
    fi
}

# check_cost NAME WHAT MICROSECONDS
check_cost() {
    local says
    says="KVM makes a $2 in $(awk -v us="$3" 'BEGIN { printf "%.2f", us / 1000 }') ms (median)"
    if [ "$3" -lt $slow_us ]; then
        found PASS "$1" "$says"
    else
        found WARN "$1" "$says, a healthy host in less than $((slow_us / 1000)) ms" \
            "see nx-huge-pages and favordynmods; or the host has a slow timer (CONFIG_HZ=100) or is busy"
    fi
}

check_costs() {
    local costs vm vcpu
    is_slow=no
    if ! has perl; then
        found WARN kvm-create-vm "not measured: there is no perl" "apt-get install perl-base"
        found WARN kvm-create-vcpu "not measured: there is no perl" "apt-get install perl-base"
    elif ! costs=$(kvm_costs); then
        found WARN kvm-create-vm "not measured, since KVM makes no VM: $costs" "see kvm"
        found WARN kvm-create-vcpu "not measured, since KVM makes no VM: $costs" "see kvm"
    else
        read -r vm vcpu <<<"$costs"
        [ "$vm" -lt $slow_us ] || is_slow=yes
        check_cost kvm-create-vm VM "$vm"
        check_cost kvm-create-vcpu "VM's first processor" "$vcpu"
    fi
}

# What slows VMs down on some hosts, and harms no other: Firecracker, docs/prod-host-setup.md, "Linux 6.1 boot
# time regressions".
check_nx_huge_pages() {
    local value multihit
    value=$(cat /sys/module/kvm/parameters/nx_huge_pages 2>/dev/null)
    multihit=$(cat /sys/devices/system/cpu/vulnerabilities/itlb_multihit 2>/dev/null)
    if [ -z "$value" ]; then
        found PASS nx-huge-pages "this KVM does not have it"
    elif [ "$value" = never ]; then
        found PASS nx-huge-pages "it is off for good"
    elif [ -n "$multihit" ] && [ "$multihit" != "Not affected" ]; then
        found PASS nx-huge-pages "it is $value; this processor needs it (iTLB multihit)"
    elif [ $is_slow = no ]; then
        found PASS nx-huge-pages "it is $value, at no cost that is seen"
    else
        found WARN nx-huge-pages "it is $value: each VM waits for a thread that this processor does not need, as it has no iTLB multihit" \
            "boot with kvm.nx_huge_pages=never, or load kvm with nx_huge_pages=never"
    fi
}

check_favordynmods() {
    local options says="control groups are mounted without it"
    options=$(awk '$2 == "/sys/fs/cgroup" && $3 == "cgroup2" { print $4; exit }' /proc/mounts)
    if [[ ",$options," == *,favordynmods,* ]]; then
        found PASS favordynmods "control groups are mounted with it"
    elif [ $is_slow = no ]; then
        found PASS favordynmods "$says, at no cost that is seen"
    elif [ -n "$options" ]; then
        found WARN favordynmods "$says: each new thread of a VM may wait for all processors" \
            "mount -o remount,favordynmods /sys/fs/cgroup"
    else
        found WARN favordynmods "$says (version 1): each new thread of a VM may wait for all processors" \
            "boot with cgroup_favordynmods=true, or use control groups of version 2"
    fi
}

check_userfaultfd() {
    local number=323 why
    [ "$(uname -m)" != aarch64 ] || number=282
    if ! has perl; then
        found WARN userfaultfd "not tried: there is no perl" "apt-get install perl-base"
    elif why=$(perl -e 'syscall($ARGV[0] + 0, 0) >= 0 or die "$!\n"' $number 2>&1); then
        found PASS userfaultfd "memory of clones can come in when it is touched"
    else
        found WARN userfaultfd "there is none ($why): the cloud-hypervisor engine copies a clone's memory before it runs" \
            "run cocoon as root, with a kernel that has CONFIG_USERFAULTFD"
    fi
}

check_hugepages() {
    local pool=/sys/kernel/mm/hugepages/hugepages-2048kB free reserved total
    free=$(cat $pool/free_hugepages 2>/dev/null || echo 0)
    reserved=$(cat $pool/resv_hugepages 2>/dev/null || echo 0)
    total=$(cat $pool/nr_hugepages 2>/dev/null || echo 0)
    free=$((free - reserved))
    local fix="sysctl -w vm.nr_hugepages=N, of 2 MiB each, if guests shall have them"
    if [ "$free" -gt 0 ]; then
        found PASS hugepages "$((2 * free))MiB of $((2 * total))MiB are free for guests"
    elif [ "$total" -gt 0 ]; then
        found WARN hugepages "all $((2 * total))MiB are in use: new guests have ordinary pages, and more TLB misses" "$fix"
    else
        found WARN hugepages "none are reserved: guests have ordinary pages, and more TLB misses" "$fix"
    fi
}

# --- the network --------------------------------------------------------------------------------------

check_tun() {
    if { : <>/dev/net/tun; } 2>/dev/null; then
        found PASS tun "/dev/net/tun opens"
    else
        found FAIL tun "/dev/net/tun does not open" \
            "load the module: ${0##*/} --fix, or: modprobe tun; and run cocoon as root"
    fi
}

# Makes each kind of device once, in a network namespace that ends with it. As `network::probe`.
try_devices() {
    # shellcheck disable=SC2016 # The inner shell shall expand it.
    unshare --net sh -c '
        try() { module=$1; shift; "$@" 2>/dev/null || { echo "$module"; exit 1; }; }
        try bridge ip link add bridge0 type bridge
        try veth ip link add veth0 type veth peer name veth1
        try tun ip tuntap add tap0 mode tap multi_queue
        try sch_ingress tc qdisc add dev tap0 ingress
        try act_mirred tc filter add dev tap0 parent ffff: protocol all prio 1 u32 match u32 0 0 \
            action mirred egress redirect dev veth0'
}

check_modules() {
    local program module
    if ! is_root; then
        found WARN kernel-modules "not tried: it needs root" "run ${0##*/} as root, for example by sudo"
        return
    fi
    for program in unshare ip tc; do
        if ! has $program; then
            found WARN kernel-modules "not tried: there is no $program" "apt-get install util-linux iproute2"
            return
        fi
    done
    if module=$(try_devices); then
        found PASS kernel-modules "bridges, pairs, TAP devices and redirects can be made"
    else
        found FAIL kernel-modules "this kernel does not do what the module ${module:-net_ns} does" \
            "have a kernel with it; as a module: modprobe ${module:-net_ns}"
    fi
}

# The CNI configuration that is used: the first list by name, else the first plugin.
conflist() {
    local file pattern
    for pattern in conflist conf json; do
        for file in "$conf_dir"/*."$pattern"; do
            [ ! -f "$file" ] || { echo "$file"; return; }
        done
    done
}

# values KEY: the strings that a key has anywhere in the configuration; of cocoon's own if there is none.
values() {
    local file
    file=$(conflist)
    { if [ -n "$file" ]; then cat "$file"; else own_list 10.88.0.0/16; fi; } | tr -d '\n' |
        grep -oE "\"$1\"[[:space:]]*:[[:space:]]*(\"[^\"]*\"|true)" | sed -E 's/^"[^"]*"[[:space:]]*:[[:space:]]*//; s/"//g'
}

check_plugins() {
    local plugin missing=''
    while read -r plugin; do
        [ -x "$bin_dir/$plugin" ] || [[ ", $missing, " == *", $plugin, "* ]] || missing+="${missing:+, }$plugin"
    done < <(values type)
    if [ -z "$missing" ]; then
        found PASS cni-plugins "all that are needed are in $bin_dir"
    else
        found FAIL cni-plugins "$bin_dir has no $missing" \
            "${0##*/} --upgrade; or apt-get install containernetworking-plugins, and --cni-bin-dir /usr/lib/cni"
    fi
}

check_conflist() {
    local file
    file=$(conflist)
    if [ -z "$file" ]; then
        found FAIL cni-conflist "the CNI configuration folder $conf_dir has no *.conflist, *.conf or *.json file" \
            "${0##*/} --fix writes one; or run VMs without a network: --nics 0"
    elif [ -z "$(values name)" ] || [ -z "$(values type)" ]; then
        found FAIL cni-conflist "$file is no CNI configuration list" \
            "correct it, or name another folder by --cni-conf-dir"
    else
        found PASS cni-conflist "NICs join the network $(values name | head -1)"
    fi
}

check_forward() {
    local value
    value=$(cat /proc/sys/net/ipv4/ip_forward 2>/dev/null)
    if [ "$value" = 1 ]; then
        found PASS ip-forward "net.ipv4.ip_forward is 1"
    else
        found FAIL ip-forward "net.ipv4.ip_forward is ${value:-not there}: guests reach no further than this host" \
            "${0##*/} --fix, or: sysctl -w net.ipv4.ip_forward=1"
    fi
}

# The guests' bridge; nothing where the configuration has none.
bridge() {
    values type | grep -qx bridge || return
    { values bridge; echo cni0; } | head -1
}

# shut BRIDGE: reads `iptables -S FORWARD`, prints the ways (out, back) that it leaves shut. As `firewall::ways`.
shut() {
    awk -v bridge="$1" '
        function known(text) {
            return text ~ /^-m (conntrack --ctstate|state --state) ([A-Z]+,)*ESTABLISHED(,[A-Z]+)*$/
        }
        BEGIN { policy = 1; out = back = -1 }
        $0 == "-P FORWARD DROP" { policy = 0 }
        /^-A FORWARD / {
            rest = substr($0, 12)
            if (!match(rest, /(^| )-j /)) next
            matches = substr(rest, 1, RSTART - 1)
            split(substr(rest, RSTART + RLENGTH), words, " ")
            target = words[1]
            of_back = index(matches, "-o " bridge) == 1 ? substr(matches, length("-o " bridge) + 1) : "no"
            sub(/^ /, "", of_back)
            if (target == "ACCEPT") {
                if (out < 0 && (matches == "" || matches == "-i " bridge)) out = 1
                if (back < 0 && (matches == "" || known(matches) || of_back == "" || known(of_back))) back = 1
            } else if ((target == "DROP" || target == "REJECT") && matches == "") {
                if (out < 0) out = 0
                if (back < 0) back = 0
            }
        }
        END {
            if (out < 0) out = policy
            if (back < 0) back = policy
            if (!out) print "out"
            if (!back) print "back"
        }'
}

check_rules() {
    local rules masquerade
    masquerade=$(values ipMasq | grep -cx true)
    if has iptables; then
        if ! rules=$(iptables -w 5 -S FORWARD 2>&1); then
            found WARN forward-rules "the rules cannot be read: ${rules//$'\n'/ }" \
                "run cocoon as root; and if it is, have a kernel with iptables (ip_tables, nf_tables)"
        elif values type | grep -qx firewall; then
            found PASS forward-rules "the CNI plugin firewall opens them for each guest"
        elif [ -z "$(shut "$(bridge)" <<<"$rules")" ]; then
            found PASS forward-rules "what guests send and get is forwarded"
        elif [ -n "$(bridge)" ]; then
            found FAIL forward-rules "FORWARD drops what goes between $(bridge) and the world" "${0##*/} --fix"
        else
            found WARN forward-rules "FORWARD drops what it does not know, and the CNI configuration names no bridge to look for" \
                "see that FORWARD accepts what guests send and get"
        fi
    elif has nft; then
        if ! rules=$(nft list chains 2>&1); then
            found WARN forward-rules "the rules cannot be read: ${rules//$'\n'/ }" "run cocoon as root"
        elif grep 'hook forward' <<<"$rules" | grep -q 'policy drop'; then
            found WARN forward-rules "a chain of nftables drops what is forwarded and nobody accepts" \
                "have that chain accept what comes in from $(bridge), and what goes out to it of known connections"
        else
            found PASS forward-rules "nftables drop nothing that is forwarded"
        fi
    elif [ "$masquerade" -gt 0 ]; then
        found FAIL forward-rules "the CNI configuration asks for ipMasq, and there is neither iptables nor nft to do it" \
            "apt-get install iptables"
    else
        found PASS forward-rules "there is neither iptables nor nft, so nothing is dropped"
    fi
}

# --- storage ------------------------------------------------------------------------------------------

# existing FOLDER: itself, or the nearest above it that exists.
existing() {
    local folder=$1
    while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
    echo "$folder"
}

check_folders() {
    local folder not='' shut='' missing=''
    for folder in "$root_dir" "$run_dir" "$log_dir"; do
        if [ ! -e "$folder" ]; then
            missing+="${missing:+, }$folder"
        elif [ ! -d "$folder" ]; then
            not+="${not:+, }$folder"
        elif [ ! -w "$folder" ] || [ ! -x "$folder" ]; then
            shut+="${shut:+, }$folder"
        fi
    done
    if [ -n "$not" ]; then
        found FAIL folders "no folder: $not" \
            "move it out of the way, or choose other folders: --root-dir, --run-dir, --log-dir"
    elif [ -n "$shut" ]; then
        found FAIL folders "cannot be written: $shut" \
            "run cocoon as root, or choose other folders: --root-dir, --run-dir, --log-dir"
    elif [ -n "$missing" ]; then
        found WARN folders "not there yet: $missing" \
            "${0##*/} --fix; or nothing: the first command that needs them makes them"
    else
        found PASS folders "all are there"
    fi
}

check_space() {
    local free says fix="free some space, for example by cocoon gc, or choose another --root-dir"
    free=$(df -B1 --output=avail "$(existing "$root_dir")" "$(existing "$run_dir")" | awk 'NR > 1' | sort -n | head -1)
    says="$(awk -v b="$free" 'BEGIN { printf "%.2f", b / 1073741824 }')GiB are free"
    if [ "$free" -lt $gib ]; then
        found FAIL disk-space "only $says" "$fix"
    elif [ "$free" -lt $((10 * gib)) ]; then
        found WARN disk-space "only $says" "$fix"
    else
        found PASS disk-space "$says"
    fi
}

check_reflink() {
    local from to fix="put --root-dir and --run-dir on one XFS, btrfs or bcachefs"
    if ! from=$(mktemp "$(existing "$root_dir")/.tmp-cocoon-XXXXXX" 2>/dev/null); then
        found WARN reflink "could not be tried: $(existing "$root_dir") cannot be written" "$fix"
        return
    fi
    if ! to=$(mktemp "$(existing "$run_dir")/.tmp-cocoon-XXXXXX" 2>/dev/null); then
        found WARN reflink "could not be tried: $(existing "$run_dir") cannot be written" "$fix"
    elif printf '%4096s' '' >"$from" && cp --reflink=always "$from" "$to" 2>/dev/null; then
        found PASS reflink "disks of snapshots and clones share their blocks"
    else
        found WARN reflink "the file system shares no blocks: each snapshot and clone copies the VM's disk" "$fix"
    fi
    rm -f "$from" "$to"
}

check_mkfs() {
    if (PATH=$user_path && has mkfs.ext4); then
        found PASS mkfs-ext4 "it formats the disks of VMs"
    else
        found FAIL mkfs-ext4 "cannot run it: no VM can have a disk of its own" \
            "apt-get install e2fsprogs, and have its folder (/usr/sbin) in PATH"
    fi
}

check_firmware() {
    if [ -s "$firmware" ]; then
        found PASS firmware "$firmware"
    else
        found WARN firmware "$firmware is not there; only cloud images need it, OCI images do not" \
            "${0##*/} --upgrade, or name yours by COCOON_FIRMWARE"
    fi
}

check_all() {
    passed=0 warned=0 failed=0 verdicts=''
    check_user
    check_processor
    check_kvm
    check_costs
    check_nx_huge_pages
    check_favordynmods
    check_userfaultfd
    check_hugepages
    check_tun
    check_modules
    check_plugins
    check_conflist
    check_forward
    check_rules
    check_folders
    check_space
    check_reflink
    check_mkfs
    check_firmware
}

# --- repairs ------------------------------------------------------------------------------------------

trouble=0

fixed() { note "fixed $1: $2"; }

# cannot SAYS: something was not repaired; the rest is tried all the same.
cannot() {
    note "error: $1"
    trouble=1
}

# own_list CIDR: the CNI configuration that cocoon writes, the same as `cocoon doctor --fix` writes.
own_list() {
    local first
    first=$(first_address "$1")
    cat <<EOF
{
  "cniVersion": "1.0.0",
  "name": "cocoon",
  "plugins": [
    {
      "bridge": "cni0",
      "hairpinMode": true,
      "ipMasq": true,
      "ipam": {
        "ranges": [
          [
            {
              "gateway": "$first",
              "subnet": "$1"
            }
          ]
        ],
        "routes": [
          {
            "dst": "0.0.0.0/0"
          }
        ],
        "type": "host-local"
      },
      "isGateway": true,
      "type": "bridge"
    }
  ]
}
EOF
}

# number ADDRESS, dotted NUMBER: an IPv4 address as one number, and back.
number() {
    local IFS=. a b c d
    read -r a b c d <<<"$1"
    echo $(((a << 24) + (b << 16) + (c << 8) + d))
}

dotted() { echo "$(($1 >> 24 & 255)).$(($1 >> 16 & 255)).$(($1 >> 8 & 255)).$(($1 & 255))"; }

# network CIDR: its first address, that of the network itself, as a number.
network() { echo $(($(number "${1%/*}") & ~((1 << (32 - ${1#*/})) - 1))); }

first_address() { dotted $(($(network "$1") + 1)); }

# overlapping CIDR: the device that has a route to addresses of it, other than the default one.
overlapping() {
    local from to device destination mask start end
    from=$(network "$1")
    to=$((from + (1 << (32 - ${1#*/})) - 1))
    # Addresses as the memory has them: the last byte first.
    while read -r device destination _ _ _ _ _ mask _; do
        if [ "$mask" = 00000000 ] || [ "$device" = cni0 ]; then continue; fi
        start=$((16#${destination:6:2}${destination:4:2}${destination:2:2}${destination:0:2}))
        end=$((start | (~16#${mask:6:2}${mask:4:2}${mask:2:2}${mask:0:2} & 0xffffffff)))
        if [ $start -le $to ] && [ $end -ge "$from" ]; then
            echo "$device"
            return
        fi
    done < <(tail -n +2 /proc/net/route 2>/dev/null)
}

# write_new PATH: writes standard input to a file that does not exist, whole or not at all.
write_new() {
    local temp
    sweep "$(dirname "$1")" && temp=$(mktemp "$(dirname "$1")/.tmp-cocoon-XXXXXX") || return
    cat >"$temp" && chmod 644 "$temp" && ln "$temp" "$1" 2>/dev/null
    local code=$?
    rm -f "$temp"
    return $code
}

fix_folders() {
    local folder
    for folder in "$root_dir" "$run_dir" "$log_dir"; do
        [ ! -e "$folder" ] || continue
        if (umask 027 && mkdir -p "$folder"); then
            fixed folders "made $folder"
        else
            cannot "cannot make the folder $folder"
        fi
    done
    # As the program's first command makes them.
    (umask 027 && mkdir -p "$root_dir"/{locks,blobs,boot,staging,snapshots} "$run_dir/vms")
}

# load NAME MODULE
load() {
    if modprobe "$2"; then fixed "$1" "loaded the module $2"; else cannot "cannot load the module $2"; fi
}

fix_modules() {
    if ! is_well kvm && [ ! -e /dev/kvm ]; then
        case $(virtualization) in
        vmx) load kvm kvm_intel ;;
        svm) load kvm kvm_amd ;;
        esac
    fi
    is_well tun || [ -e /dev/net/tun ] || load tun tun
}

fix_conflist() {
    local device
    is_well cni-conflist || [ -n "$(conflist)" ] || {
        device=$(overlapping "$subnet")
        if [ -n "$device" ]; then
            cannot "cannot write a CNI configuration: $subnet overlaps a route of $device; choose another --subnet"
        elif own_list "$subnet" | write_new "$conf_dir/10-cocoon.conflist"; then
            fixed cni-conflist "wrote $conf_dir/10-cocoon.conflist, with $subnet for guests"
        else
            cannot "cannot write $conf_dir/10-cocoon.conflist"
        fi
    }
}

fix_forward() {
    is_well ip-forward || {
        if [ -d /etc/sysctl.d ] && [ ! -e /etc/sysctl.d/90-cocoon.conf ]; then
            printf '# Guests of cocoon reach the world through this host.\nnet.ipv4.ip_forward = 1\n' |
                write_new /etc/sysctl.d/90-cocoon.conf &&
                fixed ip-forward "wrote /etc/sysctl.d/90-cocoon.conf, for the next boot"
        fi
        # At the end: a host that forwards has nothing to be repaired.
        if echo 1 >/proc/sys/net/ipv4/ip_forward; then
            fixed ip-forward "set net.ipv4.ip_forward to 1"
        else
            cannot "cannot write /proc/sys/net/ipv4/ip_forward"
        fi
    }
}

fix_rules() {
    local way rule name
    is_well forward-rules || ! has iptables || [ -z "$(bridge)" ] || {
        name=$(bridge)
        for way in $(iptables -w 5 -S FORWARD | shut "$name"); do
            # In front: behind a rule that rejects all, it would do nothing.
            case $way in
            out) rule=(-I FORWARD -i "$name" -j ACCEPT) ;;
            *) rule=(-I FORWARD -o "$name" -m conntrack --ctstate "RELATED,ESTABLISHED" -j ACCEPT) ;;
            esac
            if iptables -w 5 "${rule[@]}"; then
                fixed forward-rules "iptables ${rule[*]}"
            else
                cannot "iptables ${rule[*]} failed"
            fi
        done
    }
}

# --- what is installed --------------------------------------------------------------------------------

# listed: install, machine, SHA-256 and address of each file, from the manifest that was named or from here.
listed() {
    if [ -z "$manifest" ]; then
        pins
        return
    fi
    awk -F' = ' '
        function print_one() { if (url != "") print install, arch, sha256, url }
        /^\[\[file\]\]/ { print_one(); install = arch = sha256 = url = "" }
        { value = $2; gsub(/"/, "", value) }
        $1 == "install" { install = value } $1 == "arch" { arch = value }
        $1 == "sha256" { sha256 = value } $1 == "url" { url = value }
        END { print_one() }' "$manifest"
}

# fetch URL SHA256 FILE
fetch() {
    local got
    note "fetching $1"
    if ! curl -fsSL --connect-timeout 10 -o "$3" "$1"; then
        cannot "cannot fetch $1"
        return 1
    fi
    got=$(sha256sum "$3" | cut -d' ' -f1)
    if [ "$got" != "$2" ]; then
        cannot "$1 is not the file that is wanted: it has the digest sha256:$got, not sha256:$2"
        return 1
    fi
}

# sweep FOLDER: makes it, and removes what a killed repair or upgrade left in it.
sweep() { mkdir -p "$1" && rm -rf "$1"/.tmp-cocoon-*; }

kept() { note "kept $1, which is another; remove it to have it replaced"; }

# install_firmware FILE URL DIGEST
install_firmware() {
    local file=$1 url=$2 digest=$3
    sweep "$(dirname "$file")"
    if [ -e "$file" ]; then
        sha256sum "$file" | grep -q "^$digest " || kept "$file"
        return
    fi
    temp=$(mktemp "$(dirname "$file")/.tmp-cocoon-XXXXXX") || return
    if fetch "$url" "$digest" "$temp" && chmod 644 "$temp" && sync "$temp" && mv "$temp" "$file"; then
        fixed firmware "installed $file"
    fi
    rm -f "$temp"
}

install_plugins() {
    local url=$1 digest=$2 count=0 plugin name
    sweep "$bin_dir"
    # One that is there is its user's; without one that is missing there is nothing to do.
    if is_well cni-plugins; then return; fi
    temp=$(mktemp -d "$bin_dir/.tmp-cocoon-XXXXXX") || return
    if fetch "$url" "$digest" "$temp/archive" && mkdir "$temp/in" &&
        tar -xzf "$temp/archive" -C "$temp/in" --no-same-owner; then
        for plugin in "$temp"/in/*; do
            name=${plugin##*/}
            if [ ! -f "$plugin" ] || [ -L "$plugin" ] || [ ! -x "$plugin" ]; then continue; fi
            if [ -e "$bin_dir/$name" ]; then
                cmp -s "$plugin" "$bin_dir/$name" || kept "$bin_dir/$name"
            else
                chmod 755 "$plugin" && mv "$plugin" "$bin_dir/$name" && count=$((count + 1))
            fi
        done
        fixed cni-plugins "installed $count programs in $bin_dir"
    fi
    rm -rf "$temp"
}

install_all() {
    local what machine digest url
    while read -r what machine digest url; do
        [ "$machine" = "$(uname -m)" ] || continue
        case $what in
        firmware) install_firmware "$firmware" "$url" "$digest" ;;
        small-firmware) install_firmware "$root_dir/firmware/hypervisor-fw" "$url" "$digest" ;;
        cni-plugins) install_plugins "$url" "$digest" ;;
        esac
    done < <(listed)
}

# ------------------------------------------------------------------------------------------------------

fix=no upgrade=no quiet=no subnet=10.88.0.0/16 manifest='' temp='' is_slow=no
while [ $# -gt 0 ]; do
    case $1 in
    --fix) fix=yes ;;
    --upgrade) fix=yes upgrade=yes ;;
    --subnet=*) subnet=${1#*=} ;;
    --subnet) subnet=${2:-} && shift ;;
    --manifest=*) manifest=${1#*=} ;;
    --manifest) manifest=${2:-} && shift ;;
    -h | --help)
        sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"
        exit
        ;;
    *) usage "there is no $1" ;;
    esac
    shift
done
octet='(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])'
[[ $subnet =~ ^$octet(\.$octet){3}/([1-9]|[12][0-9]|30)$ ]] ||
    usage "$subnet is no subnet: write addresses and a prefix of /1 to /30, such as 10.88.0.0/16"
subnet=$(dotted "$(network "$subnet")")/${subnet#*/}
[ -z "$manifest" ] || [ -r "$manifest" ] || usage "cannot read the manifest $manifest"

if [ $fix = yes ]; then
    if ! is_root; then
        note "error: only root may repair a host"
        note "hint: run ${0##*/} as root, for example by sudo"
        exit 1
    fi
    trap 'rm -rf "$temp"' EXIT
    trap 'exit 130' INT TERM
    quiet=yes
    check_all
    quiet=no
    fix_folders
    # Two at once, of the script or of the program, come one after the other.
    exec 9>"$root_dir/locks/doctor.lock" && flock 9
    fix_modules
    fix_conflist
    fix_forward
    fix_rules
    [ $upgrade = no ] || install_all
fi
check_all
note "$passed passed, $warned warnings, $failed failed"
[ $failed = 0 ] && [ $trouble = 0 ]
