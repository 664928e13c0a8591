# A cloud image, from its server to its clones.
# images: debian12-cloud

# served FOLDER ADDRESS PORT FILE: serves a folder over HTTP, and has it serve the file.
served() {
    python3 -m http.server --bind "$2" --directory "$1" "$3" >>/lab/http.log 2>&1 &
    at_exit "kill $!"
    wait_for 60 "the server of $4" curl -sfI "http://$2:$3/$4"
}

# logged_in WHEN VM: what the guest says of itself on its console; see guest/cloud.py.
logged_in() {
    local addresses
    mapfile -t addresses < <(vm_field "$2" '.network_configs[].network.ip')
    python3 "$LAB/guest/cloud.py" "$1" "$COCOON_BIN" "$COCOON_ROOT" "$2" "${addresses[@]}"
}

# stopped_in SECONDS VM: the power button, and so much time.
stopped_in() {
    cocoon --config /dev/stdin vm stop "$2" <<<"stop_timeout_seconds = $1"
    assert_eq "$(vm_field "$2" '"\(.state): \(.reason)"')" "stopped: stopped by cocoon" "the end of $2"
}

has_powered_off() {
    console_log_has "$1" "Power down|poweroff.target|System Power Off"
}

booted_again() {
    [ "$(vm_field cloud .first_booted)" = true ]
}

# is_its_own VM: by its agent.
is_its_own() {
    local said address
    said=$(cocoon vm exec --wait 900 "$1" -- sh -c 'hostname; ip -4 -o addr; cat /sys/class/net/*/address
        cmp -s /etc/machine-id /root/machine-id && echo the same machine
        cat /etc/ssh/ssh_host_*.pub | cmp -s - /root/keys && echo the same keys; ls /dev/vd?')
    assert_eq "$(head -n 1 <<<"$said")" "$1" "the hostname of $1"
    assert_lacks "$said" "the same" "the ids of $1"
    assert_lacks "$said" /dev/vdb "the disks of $1"
    for address in $(vm_field "$1" '.network_configs[] | .network.ip, .mac'); do
        assert_has "$said" "$address" "the addresses of $1"
    done
    address=$(vm_field "$1" '.network_configs[0].network.ip')
    ping -c 1 -W 60 "$address" >/dev/null || fail "$1 does not answer at $address"
}

# Nobody can tell it who it is: it goes on as the VM that was saved, and is one of its own from its next boot on.
a_clone_without_an_agent_is_told_by_cloud_init() {
    cocoon snapshot save --name plain cloud
    cocoon vm clone --name stranger plain 2>/lab/said
    assert_has "$(cat /lab/said)" "once it reboots, cloud-init makes it a machine of its own" "what the user is told"
    stopped_in 300 stranger
    assert_eq "$(vm_field stranger '"\(.first_booted) \(.storage_configs | length)"')" "false 2" "the clone before its first boot"
    cocoon vm start stranger
    wait_console stranger "Cloud-init v\. [0-9.]+ finished at .*NoCloud" 1800
    logged_in copy stranger
    stopped_in 300 stranger
    assert_eq "$(vm_field stranger '"\(.first_booted) \(.storage_configs | length)"')" "true 1" "the clone after its first boot"
    cocoon vm rm stranger
}

# The agent, as a user puts it into a cloud image's guest.
a_clone_with_an_agent_is_told_at_once() {
    mkdir -p /lab/agent
    "$LAB/../../os-image/agent/layer" "$LAB_AGENT" /lab/agent/agent.tar
    served /lab/agent 10.88.0.1 8001 agent.tar
    logged_in agent cloud
    cocoon vm exec --wait 300 cloud -- true
    cocoon snapshot save --name told cloud
    COCOON_IDENTITY_TIMEOUT_SECONDS=900 cocoon vm clone --name twin --require-identity told
    is_its_own twin
    stopped_in 300 twin
    has_powered_off twin || fail "the clone did not shut down in order"
    cocoon vm start twin
    is_its_own twin
    [ "$(cocoon vm exec cloud -- hostname)" = cloud ] || fail "the source is another"

    # One that does not listen to its power button is ended all the same, when its time is over.
    cocoon vm exec twin -- sh -c 'mkdir -p /etc/systemd/logind.conf.d
        printf "[Login]\nHandlePowerKey=ignore\n" >/etc/systemd/logind.conf.d/ignore.conf
        systemctl restart systemd-logind'
    local begun=$SECONDS
    : >"$(vm_field twin .console_log)"
    stopped_in 20 twin
    [ $((SECONDS - begun)) -ge 20 ] || fail "the guest had less than its 20 seconds"
    ! has_powered_off twin || fail "the guest did listen"
}

lab_cloud_image_boots_without_firmware_and_cloud_init_runs_once() { # 6000 s
    only_if_long
    need_cocoon
    cni_setup
    served "$(dirname "$(image_disk debian12-cloud)")" 127.0.0.1 8000 disk.qcow2
    local url=http://127.0.0.1:8000/disk.qcow2 sum
    sum=$(sha256sum "$(image_disk debian12-cloud)" | cut -d' ' -f1)
    refused "nothing of it is kept" cocoon image pull --sha256 "${sum//[0-8]/9}" "$url"
    assert_eq "$(cocoon image pull --sha256 "$sum" "$url")" "sha256:$sum" "the digest of the image"
    assert_eq "$(cocoon image list -o json | json '.[] | select(.type == "cloudimg") | .name')" "$url" "the image in the list"

    cocoon --root-password cocoon --dns 10.88.0.1,9.9.9.9 vm run --name cloud --memory 1G --cpu 1 --nics 2 --storage 6G "$url"
    # A prompt is there before, and the password with the last of what cloud-init does.
    wait_console cloud "Cloud-init v\. [0-9.]+ finished at .*NoCloud" 1800
    logged_in first cloud
    assert_eq "$(vm_field cloud .first_booted)" false "the first boot, before the guest says that it is complete"

    # It has reset itself: it is the same VM, and boots what is on its disk now.
    wait_for 900 "the second boot" booted_again
    assert_eq "$(vm_field cloud '"\(.state) \(.first_booted) \(.storage_configs | length)"')" "running true 1" "the VM after it"
    logged_in second cloud
    assert_has "$(vm_field cloud '.boot_config.installed.cmdline')" "cocoon.test=1" "the kernel that was chosen"

    a_clone_without_an_agent_is_told_by_cloud_init
    a_clone_with_an_agent_is_told_at_once
    stopped_in 300 cloud
    has_powered_off cloud || fail "the guest did not shut down in order"

    # The image is below the VMs' disks and the snapshots for as long as there is one.
    local blob=$COCOON_ROOT/blobs/$sum.qcow2 user
    cocoon image rm "$url"
    for user in "vm rm cloud" "snapshot rm plain" "snapshot rm told" "vm rm twin"; do
        cocoon gc
        [ -e "$blob" ] || fail "gc took the image before $user"
        # shellcheck disable=SC2086
        cocoon $user
    done
    cocoon gc
    [ ! -e "$blob" ] || fail "gc left the image of nobody"
}

# The firmware that a user or `cocoon doctor --upgrade` has put somewhere.
installed_firmware() {
    local folder file
    for folder in /var/lib/cocoon/firmware /usr/share/cloud-hypervisor /usr/share/edk2/cloudhv; do
        for file in CLOUDHV.fd hypervisor-fw; do
            [ ! -s "$folder/$file" ] || echo "$folder/$file"
        done
    done
}

# QEMU 7.2 aborts where the guest of a guest writes CR8 while an interrupt waits (helper_write_crN), which EDK II
# does at the end of each interrupt: with CLOUDHV.fd as it is released the lab host dies. Without that write in
# CpuExceptionHandlerLib it was seen to boot the image.
lab_cloud_image_boots_by_the_firmware_that_is_installed_here() { # 3600 s
    only_if_long
    need_cocoon
    [ "$COCOON_ENGINE" != micro ] || skip "micro boots no firmware"
    local found firmware
    found=$(installed_firmware)
    [ -n "$found" ] || skip "neither CLOUDHV.fd nor hypervisor-fw is installed on this machine"
    cocoon image import cloud "$(image_disk debian12-cloud)"
    for firmware in $found; do
        cocoon --config /dev/stdin vm run --boot firmware --name cloud --memory 1G --cpu 1 --nics 0 cloud <<<"firmware = \"$firmware\""
        assert_eq "$(vm_field cloud .boot_config.firmware_path)" "$firmware" "what boots"
        wait_console cloud "Cloud-init v\. [0-9.]+ finished at .*NoCloud" 1800
        stopped_in 300 cloud
        cocoon vm rm cloud
    done
}
