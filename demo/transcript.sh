#!/bin/bash
# The demonstration: from an image in a registry to a running VM and back to nothing, each command
# printed before its output. Runs as root on a host with KVM: in the lab, or in namespaces of its
# own on this machine (see demo/run).
#
#     COCOON_BIN        the program shown
#     LAB_IMAGE_tiny    the image that is pushed to the local registry, an OCI layout
#     DEMO_DIR          where everything is written
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin

work=${DEMO_DIR:-/lab}/demo
mkdir -p "$work/cni" "$work/registry" "$work/leases"
export COCOON_ROOT_DIR=$work/cocoon COCOON_LOG_DIR=$work/log
export COCOON_CNI_CONF_DIR=$work/cni COCOON_CNI_BIN_DIR=/usr/lib/cni
mkdir -p "$work/bin" && ln -sf "$COCOON_BIN" "$work/bin/cocoon" && PATH=$work/bin:$PATH

cat >"$work/cni/10-demo.conflist" <<JSON
{"cniVersion": "1.0.0", "name": "demo", "plugins": [{
  "type": "bridge", "bridge": "cni-demo", "isGateway": true, "ipMasq": false,
  "ipam": {"type": "host-local", "dataDir": "$work/leases",
           "ranges": [[{"subnet": "10.88.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
JSON
cat >"$work/registry.yml" <<YAML
version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: $work/registry}}
http: {addr: "127.0.0.1:5000"}
YAML

# show COMMAND... prints it as typed at a prompt, then runs it.
show() {
    printf '\n$ %s\n' "$*"
    bash -c "$*"
    # What a console printed last need not end with a line.
    case "$*" in *console*) echo ;; esac
}

# until_true SECONDS COMMAND... repeats a command that has no event to wait for.
until_true() {
    local left=$(($1 * 5))
    shift
    until "$@" >/dev/null 2>&1; do
        left=$((left - 1))
        [ $left -gt 0 ] || { echo "gave up waiting for: $*" >&2; return 1; }
        sleep 0.2
    done
}

registry=""
trap '[ -z "$registry" ] || kill "$registry"; wait' EXIT
docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
registry=$!
until_true 60 curl -fs http://127.0.0.1:5000/v2/
skopeo copy --quiet --dest-tls-verify=false "oci:$LAB_IMAGE_tiny" docker://127.0.0.1:5000/tiny:latest

show cocoon version
show cocoon image pull 127.0.0.1:5000/tiny
show cocoon image list
show cocoon vm run --name web --cpu 2 --memory 512M 127.0.0.1:5000/tiny
show cocoon vm list
until_true 120 bash -c 'cocoon vm logs web | grep -q "cocoon-tiny ready"'
show "echo 'uname -srm; nproc; hostname' | cocoon vm console --no-history web"
ip=$(cocoon vm list -o json | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["network_configs"][0]["network"]["ip"])')
show ping -c 3 "$ip"
show "echo 'ping -c 3 10.88.0.1' | cocoon vm console --no-history --linger 4 web"
show curl -s "http://$ip/"
show cocoon vm stop web
show cocoon vm list
show cocoon vm rm web
show cocoon image rm 127.0.0.1:5000/tiny
show cocoon gc
printf '\nThat was cocoon: no VM, no image, no namespace is left.\n'
