# Many clones of one snapshot at once, of a guest with systemd: each is a machine of its own.
# images: debian12

# A clone that answers is asked all at once: a command in an emulated guest takes a second or two.
# The clock is the guest's, in nanoseconds; the count is of a process that was counting when it was saved.
WHO='date +%s%N; cat /run/count; hostname; cat /etc/machine-id /proc/sys/kernel/random/uuid /sys/class/net/eth0/address
cut -d" " -f2 /etc/ssh/ssh_host_ed25519_key.pub'

# What the guest is given: a page that says whose it is, by systemd alone, and something that counts.
give() {
    local units=/lab/given/etc/systemd/system
    rm -rf /lab/given
    mkdir -p $units /lab/given/usr/local/bin
    printf '[Socket]\nListenStream=80\nAccept=yes\n' >$units/web.socket
    printf '[Service]\nStandardInput=socket\nExecStart=/usr/local/bin/page\n' >$units/web@.service
    printf '[Service]\nExecStart=/usr/local/bin/count\n' >$units/count.service
    # All of the request is read: what is not makes a reset of the end of the answer.
    printf '#!/bin/sh\nuntil read -r line && [ ${#line} -le 1 ]; do :; done\nprintf "HTTP/1.0 200 OK\\r\\n\\r\\n"\nhostname\n' \
        >/lab/given/usr/local/bin/page
    printf '#!/bin/sh\nn=0\nwhile sleep 1; do n=$((n+1)); echo $n >/run/count; done\n' >/lab/given/usr/local/bin/count
    chmod +x /lab/given/usr/local/bin/*
    cocoon vm cp /lab/given "$1:/run/given"
    cocoon vm exec "$1" -- sh -ec 'cp -r /run/given/. /; systemctl daemon-reload
        systemctl start web.socket count.service ssh-host-key.service; until [ -s /run/count ]; do sleep 0.2; done'
}

# cable_of VM prints this host's end of the VM's first cable.
cable_of() {
    local netns peer
    netns=$(basename "$(vm_field "$1" '.network_configs[0].netns_path')")
    peer=$(ip netns exec "$netns" cat /sys/class/net/eth0/iflink)
    ip -o link | sed -n "s/^$peer: \([^@:]*\).*/\1/p"
}

# answers VM: its page is its own, and its clock is right.
answers() {
    local address before after clock
    address=$(vm_field "$1" '.network_configs[0].network.ip')
    ping -c 1 -W 30 "$address" >/dev/null
    assert_eq "$(curl -sf -m 60 "http://$address/")" "$1" "the page of $1 at $address"
    before=$(date +%s%N)
    cocoon vm exec "$1" -- sh -c "$WHO" >"/lab/who.$1"
    after=$(date +%s%N)
    clock=$(head -n 1 "/lab/who.$1")
    [ "$clock" -gt $((before - 500000000)) ] && [ "$clock" -lt $((after + 500000000)) ] ||
        fail "the clock of $1 says $clock, which is not between $before and $after"
    assert_eq "$(sed -n 3p "/lab/who.$1")" "$1" "the hostname of $1"
    assert_eq "$(sed -n 6p "/lab/who.$1")" "$(vm_field "$1" '.network_configs[0].mac')" "the MAC in $1"
}

# differ LINE WHAT: no two of the VMs have said the same there.
differ() {
    local said
    said=$(for vm in source $clones; do sed -n "$1p" "/lab/who.$vm"; done | sort)
    assert_eq "$(uniq -d <<<"$said")" "" "$2 that two VMs have"
    assert_eq "$(grep -c . <<<"$said")" "$(wc -w <<<"source $clones")" "$2"
}

lab_clones_of_a_systemd_guest_are_machines_of_their_own() { # 2700 s
    only_if_long
    # All guests at once on one emulated processor are slow to come to themselves.
    export COCOON_IDENTITY_TIMEOUT_SECONDS=1200
    local clones="" number vm listener saved waiting=() mac ip
    for number in $(seq "${COCOON_ENGINE_CLONES:-8}"); do clones="$clones clone-$number"; done
    need_image debian12
    cocoon vm run --name source --memory 384M --cpu 1 --storage 2G "$REGISTRY/debian12:latest"
    # Until nothing more starts; some unit may have failed, which is not this test's.
    cocoon vm exec --wait "$DEBIAN_BOOT_SECONDS" source -- systemctl is-system-running --wait >/dev/null || true
    give source
    mac=$(vm_field source '.network_configs[0].mac') ip=$(vm_field source '.network_configs[0].network.ip')
    at_exit 'cocoon snapshot rm moment'
    cocoon snapshot save --name moment source
    saved=$(cocoon vm exec source -- cat /run/count)

    python3 "$LAB/guest/strangers.py" "$mac" "$ip" "$(cable_of source)" >/lab/strangers &
    listener=$!
    wait_for 30 "the listener" grep -q listening /lab/strangers
    for vm in $clones; do
        cocoon vm clone --name "$vm" --require-identity moment 2>"/lab/said.$vm" &
        waiting+=($!)
    done
    for vm in "${waiting[@]}"; do wait "$vm" || fail "a clone failed: $(cat /lab/said.*)"; done
    assert_lacks "$(cat /lab/said.*)" "cannot" "what the clones' agents could not do"
    for vm in source $clones; do answers "$vm"; done
    for vm in $clones; do
        [ "$(sed -n 2p "/lab/who.$vm")" -gt 0 ] || fail "$vm does not count"
        [ "$(cocoon vm exec "$vm" -- cat /run/count)" -gt "$(sed -n 2p "/lab/who.$vm")" ] || fail "$vm stopped counting"
    done
    [ "$(sed -n 2p /lab/who.source)" -gt "$saved" ] || fail "the source stopped counting"
    differ 3 hostnames
    differ 4 machine-ids
    differ 5 "random numbers"
    differ 6 MACs
    differ 7 "host keys of sshd"
    kill $listener
    wait $listener
    cat /lab/strangers
    assert_eq "$(grep -c veth /lab/strangers || true)" 0 "frames of clones that claim to be the source"
    assert_has "$(tail -n 1 /lab/strangers)" frames "the listener's last line"
    [ "$(tail -n 1 /lab/strangers)" != "0 frames" ] || fail "the listener has seen no frame of any clone"
}
