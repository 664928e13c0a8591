# The guest agent: commands and files in a running guest.
# images: tiny

# agent_call VM REQUEST sends a request of the protocol that no verb sends yet; prints the answer.
agent_call() {
    python3 - "$(vm_field "$1" .vsock_socket)" "$2" <<'PYTHON'
import json, socket, struct, sys
path, request = sys.argv[1:]
agent = socket.socket(socket.AF_UNIX)
agent.settimeout(60)
agent.connect(path)
agent.sendall(b"CONNECT 49344\n")
stream = agent.makefile("rb")
assert stream.readline().startswith(b"OK "), "nobody listens"
agent.sendall(struct.pack("<II", len(request), 0) + request.encode())
header, _ = struct.unpack("<II", stream.read(8))
print(json.dumps(json.loads(stream.read(header))))
PYTHON
}

no_process() {
    ! cocoon vm exec hand -- pidof "$1"
}

no_agent() {
    ! cocoon vm exec --wait 0 hand -- true
}

checksum() {
    sha256sum | cut -d' ' -f1
}

exit_code() {
    local code=0
    "$@" || code=$?
    echo $code
}

# One VM for all of it: each boot costs ten seconds.
lab_agent_runs_commands_and_copies_files() { # 420 s
    only_if_long micro
    need_image tiny
    cocoon vm run --name hand --memory 256M --storage 1G --cpu 1 "$REGISTRY/tiny:latest"
    # No waiting for the console: it is for the verb to wait.
    assert_eq "$(cocoon vm exec --wait "$TINY_BOOT_SECONDS" hand -- hostname)" hand "hostname"

    # Exit codes, streams, environment, folder.
    assert_eq "$(exit_code cocoon vm exec hand -- sh -c 'exit 7')" 7 "exit code"
    assert_eq "$(exit_code cocoon vm exec hand -- sh -c 'kill -9 $$')" 137 "exit code of a killed command"
    assert_eq "$(exit_code cocoon vm exec hand -- no-such-command 2>/lab/said)" 127 "exit code of an unknown command"
    assert_has "$(</lab/said)" no-such-command "what is said of an unknown command"
    assert_eq "$(exit_code cocoon vm exec hand -- /etc/passwd 2>/dev/null)" 126 "exit code of what is no program"
    assert_eq "$(cocoon vm exec -e WORD=there -w /etc hand sh -c 'echo $WORD $PWD; echo no >&2' 2>/dev/null)" "there /etc" "environment and folder"
    assert_eq "$(echo in | cocoon vm exec -i hand -- cat)" in "standard input"

    # Some MiB both ways.
    local sum
    head -c 6000000 /dev/urandom >/lab/blob
    sum=$(checksum </lab/blob)
    assert_eq "$(cocoon vm exec -i hand -- sh -c 'tee /tmp/blob' </lab/blob | checksum)" "$sum" "six megabytes there and back"
    assert_has "$(cocoon vm exec hand -- sha256sum /tmp/blob)" "$sum" "six megabytes in the guest"

    # A terminal, which has the window's size and passes ^C.
    python3 - "$LAB/guest" "$COCOON_BIN" "$COCOON_ROOT" <<'PYTHON'
import os, sys
sys.path.insert(0, sys.argv[1])
from console import Console
program, root = sys.argv[2:]
exec_ = Console(program, root, "hand", rows=33, columns=101, verb=["vm", "exec", "-it", "hand", "sh", "-l"])
exec_.expect(r"root@\S+:\S*# ", 30)
for rows, columns in ((33, 101), (44, 122)):
    exec_.resize(rows, columns)
    # The signal of the change may arrive after what is typed.
    output, _ = exec_.run(f"n=0; while [ \"$(stty size)\" != '{rows} {columns}' ] && [ $n -lt 50 ]; do usleep 100000; n=$((n+1)); done; stty size")
    assert output == f"{rows} {columns}\n", output
start = len(exec_.text)
# A child that speaks is the terminal's foreground: before that, ^C is the shell's.
exec_.send(b"sh -c 'echo ready; exec sleep 1000'\n")
exec_.expect("^ready", 30, start)
start = len(exec_.text)
exec_.send(b"\x03")
exec_.expect(r"root@\S+:\S*# ", 30, start)
exec_.send(b"exit 3\n")
assert exec_.wait() == 3, exec_.code
PYTHON

    # Whoever goes takes the command along. Not by the function `cocoon`, which would be a shell between us.
    "$COCOON_BIN" --root-dir "$COCOON_ROOT" --run-dir "$COCOON_ROOT/run" --log-dir "$COCOON_ROOT/log" \
        vm exec hand -- sleep 4711 &
    local pid=$! code=0
    wait_for 30 "the command in the guest" cocoon vm exec hand -- pidof sleep
    kill -INT $pid
    wait $pid || code=$?
    assert_eq $code 130 "exit code of an interrupted command"
    wait_for 30 "the end of the command in the guest" no_process sleep

    # Files, with their modes; what exists decides where they go.
    rm -rf /lab/tree /lab/back
    mkdir -p /lab/tree/sub
    echo "#!/bin/sh" >/lab/tree/sub/run
    chmod 4751 /lab/tree/sub/run
    chmod 700 /lab/tree/sub
    ln -s sub/run /lab/tree/link
    cp /lab/blob /lab/tree/blob
    cocoon vm cp /lab/tree hand:/root
    cocoon vm cp /lab/tree/sub/run hand:/root/alone
    assert_eq "$(cocoon vm exec hand -- sh -c 'cd /root; stat -c "%a %n" tree/sub tree/sub/run alone; readlink tree/link')" \
        "$(printf '700 tree/sub\n4751 tree/sub/run\n4751 alone\nsub/run')" "the copy in the guest"
    cocoon vm cp hand:/root/tree /lab/back
    # No guest gives its host a file that runs as root.
    assert_eq "$(cd /lab/back && stat -c '%a %n' sub sub/run && readlink link && checksum <blob)" \
        "$(printf '700 sub\n751 sub/run\nsub/run\n%s' "$sum")" "the copy of the copy"
    refused "/no/such" cocoon vm cp hand:/no/such/file /lab/none
    refused "/no/such" cocoon vm cp /lab/blob hand:/no/such/folder/file

    # What no verb does yet. The writable disk is in use to its end already.
    local said
    said=$(agent_call hand '"grow"')
    assert_eq "$(json '.done.warnings' <<<"$said")" "[]" "what growing says"
    [ "$(json '.done.root_bytes' <<<"$said")" -gt 900000000 ] || fail "the file system of the writable disk: $said"
    said=$(agent_call hand '{"identity": {"hostname": "other", "machine_id": "0123456789abcdef0123456789abcdef", "seed": [1, 2, 3, 4],
        "nics": [{"nic": {"index": 0}, "mac": "02:11:22:33:44:55", "addresses": [{"ip": "10.88.77.66", "prefix": 16}],
                  "routes": [{"gateway": "10.88.0.1", "metric": 100}]}]}}')
    assert_eq "$(json '.done.warnings' <<<"$said")" "[]" "what a new identity says"
    [ "$(json '.done.clock_ns' <<<"$said")" -gt 0 ] || fail "the guest's clock: $said"
    said=$(cocoon vm exec hand -- sh -c 'hostname; cat /etc/machine-id /sys/class/net/eth0/address; ip -4 addr show eth0 | grep -o "inet [^ ]*"; ip route | grep -o "default via.*metric 100"; ls /etc/systemd/network')
    assert_eq "$said" "$(printf 'other\n0123456789abcdef0123456789abcdef\n02:11:22:33:44:55\ninet 10.88.77.66/16\ndefault via 10.88.0.1 dev eth0  metric 100\n10-021122334455.network')" "the new identity"

    # A guest without an agent: busybox's init ends what its inittab no longer has.
    cocoon vm exec hand -- sh -c \
        'setsid sh -c "sleep 1; sed -i /cocoon-agent/d /etc/inittab; kill -HUP 1" </dev/null >/dev/null 2>&1 &'
    wait_for 60 "the end of the agent" no_agent
    refused "no agent answers" cocoon vm exec --wait 1 hand -- true
    assert_has "$refused_with" "os-image/README.md" "the hint"
    assert_eq "$(exit_code cocoon vm exec --wait 0 hand -- true 2>/dev/null)" 125 "exit code without an agent"
    refused "no agent answers" cocoon vm cp --wait 0 hand:/etc/passwd /lab/none

    # Back again, it ends the guest.
    in_guest hand "echo ::respawn:/usr/sbin/cocoon-agent >>/etc/inittab; kill -HUP 1"
    cocoon vm exec --wait 60 hand -- true
    assert_eq "$(agent_call hand '{"shutdown": {}}')" '{"done": null}' "what shutting down says"
    wait_for 60 "the end of the guest" vm_state_is hand stopped
    console_log_has hand "cocoon: unmounted" || fail "the guest did not shut down in order"
    refused "is not running" cocoon vm exec hand -- true
}
