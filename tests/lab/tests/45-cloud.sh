# A cloud image, from its server to its second boot.
# images: debian12-cloud

# Serves the folder of the cloud image at http://127.0.0.1:8000.
serve_images() {
    local disk
    disk=$(image_disk debian12-cloud)
    python3 -m http.server --bind 127.0.0.1 --directory "$(dirname "$disk")" 8000 >/lab/http.log 2>&1 &
    at_exit "kill $!"
    wait_for 60 "the server of the image" curl -sfI http://127.0.0.1:8000/disk.qcow2
}

lab_cloud_image_boots_without_firmware_and_cloud_init_runs_once() { # 4200 s
    only_if_long
    need_cocoon
    cni_setup
    serve_images
    local url=http://127.0.0.1:8000/disk.qcow2 sum
    sum=$(sha256sum "$(image_disk debian12-cloud)" | cut -d' ' -f1)
    refused "nothing of it is kept" cocoon image pull --sha256 "${sum//[0-8]/9}" "$url"
    assert_eq "$(cocoon image pull --sha256 "$sum" "$url")" "sha256:$sum" "the digest of the image"
    assert_eq "$(cocoon image list -o json | json '.[] | select(.type == "cloudimg") | .name')" "$url" "the image in the list"

    cocoon --root-password cocoon --dns 10.88.0.1,9.9.9.9 vm run --name cloud --memory 1G --cpu 1 --nics 2 --storage 6G "$url"
    # A prompt is there before, and the password with the last of what cloud-init does.
    wait_console cloud "Cloud-init v\. [0-9.]+ finished at .*NoCloud" 1800
    local address
    address=$(vm_field cloud '[.network_configs[].network.ip] | join(" ")')
    python3 "$LAB/guest/cloud.py" first "$COCOON_BIN" "$COCOON_ROOT" "${address% *}" "${address#* }"
    assert_eq "$(vm_field cloud .first_booted)" false "the first boot, before the guest says that it is complete"

    # It has reset itself: it is the same VM, and boots what is on its disk now.
    wait_for 900 "the second boot" booted_again
    assert_eq "$(vm_field cloud '"\(.state) \(.first_booted) \(.storage_configs | length)"')" "running true 1" "the VM after it"
    python3 "$LAB/guest/cloud.py" second "$COCOON_BIN" "$COCOON_ROOT" "${address% *}" "${address#* }"
    assert_has "$(vm_field cloud '.boot_config.installed.cmdline')" "cocoon.test=1" "the kernel that was chosen"

    cocoon --config /dev/stdin vm stop cloud <<<'stop_timeout_seconds = 300'
    assert_eq "$(vm_field cloud '"\(.state): \(.reason)"')" "stopped: stopped by cocoon" "the end"
    console_log_has cloud "Power down|poweroff.target|System Power Off" || fail "the guest did not shut down in order"

    # The image is below the VM's disk for as long as there is a VM.
    local blob=$COCOON_ROOT/blobs/$sum.qcow2
    cocoon image rm "$url"
    cocoon gc
    [ -e "$blob" ] || fail "gc took the image of a VM"
    cocoon vm rm cloud
    cocoon gc
    [ ! -e "$blob" ] || fail "gc left the image of nobody"
}

booted_again() {
    [ "$(vm_field cloud .first_booted)" = true ]
}
