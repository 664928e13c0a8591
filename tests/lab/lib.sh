# What tests in the lab are written with. Sourced by guest/run-one, under `set -euo pipefail`.
#
#     /lab/cocoon        cocoon's root folder, shared by the tests of one run: a pulled image stays
#     /lab/registry      the registry's storage; it listens on $REGISTRY
#     /etc/cni/net.d     made by cni_setup
# A test may rely on nothing that another test made; need_* makes what is missing. After each test
# lab_cleanup removes its VMs.

REGISTRY=127.0.0.1:5000
COCOON_ROOT=/lab/cocoon
# Under emulation a tiny guest needs 5 to 10 seconds to boot, a systemd guest a minute; on a machine
# whose cores are shared, some times that.
TINY_BOOT_SECONDS=90
DEBIAN_BOOT_SECONDS=400

# ---- saying how it went -----------------------------------------------------------------------

fail() {
    note "$*"
    echo "$*"
    exit 1
}

# note SENTENCE is what the test's line will say; the first one stands.
note() {
    [ -s "$LAB_NOTE" ] || echo "$*" >"$LAB_NOTE"
}

# skip WHY ends the test; the closing line counts it.
skip() {
    note "$*"
    exit 77
}

# only_if_long [ENGINE] leaves the test out unless it is asked for, or it is ENGINE's: of what is the same on all
# engines, each lab has a part. Where ENGINE is not linked, any other one stands in for it.
only_if_long() {
    [ "$COCOON_ENGINE" = "${1:-}" ] || [ -n "${COCOON_ENGINE_LONG:-}" ] ||
        { [ -n "${1:-}" ] && ! grep -qxF "$1" <<<"$LAB_LINKED"; } ||
        skip "it takes minutes on $COCOON_ENGINE: COCOON_ENGINE_LONG is not set"
}

# assert_eq GOT WANT WHAT
assert_eq() {
    [ "$1" = "$2" ] || fail "$3: got '$1', want '$2'"
}

# assert_has TEXT PART WHAT
assert_has() {
    case "$1" in *"$2"*) ;; *) fail "$3: '$2' is not in: $1" ;; esac
}

assert_lacks() {
    case "$1" in *"$2"*) fail "$3: '$2' is in: $1" ;; esac
}

# refused PART COMMAND... runs a command that must fail with PART in its last words; they are left in
# $refused_with.
refused() {
    local part=$1
    shift
    if refused_with=$("$@" 2>&1); then
        fail "was not refused: $*; it said: $refused_with"
    fi
    assert_has "$refused_with" "$part" "the refusal of $*"
}

# wait_for SECONDS WHAT COMMAND... looks twice a second until COMMAND is true; for conditions of which
# nobody sends an event. Programs that start are what is slow under emulation: COMMAND should be a
# function without any, where it waits for a guest.
wait_for() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || fail "waited in vain: $what"
        sleep 0.5
    done
}

# json FILTER reads JSON from standard input and prints what jq makes of it: a string bare, all else on
# one line. Python needs three times as long to start, a second under emulation.
json() {
    jq -rc "$1"
}

# ---- cocoon -----------------------------------------------------------------------------------

cocoon() {
    "$COCOON_BIN" --root-dir "$COCOON_ROOT" --run-dir "$COCOON_ROOT/run" --log-dir "$COCOON_ROOT/log" "$@"
}

# Fails where there is no program under test: every test of cocoon begins here, through need_image.
need_cocoon() {
    [ -n "${COCOON_BIN:-}" ] || skip "no program under test: COCOON_BIN is not set"
    [ -x "$COCOON_BIN" ] || fail "the program under test is not executable: $COCOON_BIN"
}

# vm_field VM FILTER, of `vm inspect`
vm_field() {
    cocoon vm inspect "$1" | json "$2"
}

vm_state_is() {
    [ "$(vm_field "$1" .state)" = "$2" ]
}

# console_log VM prints what the guest has printed on its console so far.
console_log() {
    cocoon vm logs "$1" 2>/dev/null
}

console_log_has() {
    console_log "$1" | grep -qE -- "$2"
}

file_has() {
    # Bash 5.2 would end without a word if there were none to read, whatever this is part of.
    [[ -e "$1" && "$(<"$1")" =~ $2 ]]
}

# wait_console VM PATTERN SECONDS
wait_console() {
    wait_for "$3" "'$2' on the console of $1" file_has "$(vm_field "$1" .console_log)" "$2"
}

# run_tiny NAME FLAGS... runs a tiny VM and waits until its userland is up.
run_tiny() {
    local name=$1
    shift
    need_image tiny
    cocoon vm run --name "$name" --memory 256M --storage 1G --cpu 1 "$@" "$REGISTRY/tiny:latest"
    wait_console "$name" "cocoon-tiny ready" "$TINY_BOOT_SECONDS"
}

# in_guest VM COMMAND runs a command in the shell on the VM's console, prints its output, returns its code.
in_guest() {
    python3 "$LAB/guest/console.py" --program "$COCOON_BIN" --root "$COCOON_ROOT" "$1" "$2"
}

# at_exit COMMAND: to be run when the test ends, however it ends, before its VMs are removed.
at_exit() {
    LAB_AT_EXIT="$*; ${LAB_AT_EXIT:-}"
}

lab_cleanup() {
    local code=$? vm
    trap - ERR
    set +e
    eval "${LAB_AT_EXIT:-}"
    if [ -n "${COCOON_BIN:-}" ] && [ -x "$COCOON_BIN" ]; then
        if [ $code -ne 0 ] && [ $code -ne 77 ]; then
            for vm in $(cocoon vm list -q 2>/dev/null); do
                echo "-- console of $vm:"
                cocoon vm logs "$vm" 2>&1 | tail -n 15
                echo "-- log of its process:"
                tail -n 10 "$COCOON_ROOT/log/vms/$vm/vmm.log" 2>/dev/null
            done
        fi
        for vm in $(cocoon vm list -q 2>/dev/null); do
            # A VM that cannot be removed is a failure, whatever the test was about.
            cocoon vm rm --force "$vm" >/dev/null || [ $code -ne 0 ] || code=1
        done
    fi
    exit $code
}

# ---- registry and images ----------------------------------------------------------------------

start_registry() {
    curl -sf "http://$REGISTRY/v2/" >/dev/null && return 0
    mkdir -p /lab/registry
    cat >/lab/registry.yml <<EOF
version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: /lab/registry}, delete: {enabled: true}}
http: {addr: $REGISTRY}
EOF
    setsid docker-registry serve /lab/registry.yml >/lab/registry.log 2>&1 </dev/null &
    wait_for 60 "the registry on $REGISTRY" curl -sf "http://$REGISTRY/v2/"
}

# Ends the registry that start_registry began.
stop_registry() {
    local pid
    for pid in $(pidof docker-registry); do
        kill "$pid"
        wait_for 20 "the end of the registry" test ! -e "/proc/$pid"
    done
}

# push LAYOUT NAME pushes an OCI layout's tag `latest` as $REGISTRY/NAME:latest.
push() {
    start_registry
    skopeo --insecure-policy copy --quiet --preserve-digests --dest-tls-verify=false \
        "oci:$1:latest" "docker://$REGISTRY/$2:latest"
}

# image_layout NAME prints where the guest image's OCI layout is.
image_layout() {
    local variable=LAB_IMAGE_${1//-/_}
    [ -n "${!variable:-}" ] || fail "this run has no image $1: the test's file needs the line '# images: $1'"
    echo "${!variable}"
}

# image_disk NAME prints where the cloud image's disk is, a qcow2 file.
image_disk() {
    local folder
    folder=$(image_layout "$1")
    echo "${folder%/oci}/disk.qcow2"
}

# need_pushed NAME: the guest image is in the registry.
need_pushed() {
    start_registry
    curl -sf -o /dev/null -H 'Accept: application/vnd.oci.image.manifest.v1+json' \
        "http://$REGISTRY/v2/$1/manifests/latest" || push "$(image_layout "$1")" "$1"
}

# need_image NAME: cocoon has the guest image, and a network for its VMs exists.
need_image() {
    need_cocoon
    [ -e /etc/cni/net.d/10-lab.conflist ] || cni_setup
    need_pushed "$1"
    cocoon image inspect "$REGISTRY/$1:latest" >/dev/null 2>&1 || cocoon image pull "$REGISTRY/$1:latest"
}

# ---- network ----------------------------------------------------------------------------------

# cni_setup [MTU] writes the only conflist: a bridge of 10.88.0.0/16, with its gateway on this host.
cni_setup() {
    mkdir -p /etc/cni/net.d
    cat >/etc/cni/net.d/10-lab.conflist <<EOF
{"cniVersion": "1.0.0", "name": "lab", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true, "mtu": ${1:-1500},
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": "/lab/cni-ipam"}},
  {"type": "tuning"}]}
EOF
}

# The addresses that host-local has given away, one a line.
cni_leases() {
    find /lab/cni-ipam -name '10.*' -printf '%f\n' 2>/dev/null | sort
}

netns_list() {
    ip netns list | awk '{print $1}' | sort
}
