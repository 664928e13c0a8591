# What a guest sees of an image's layers.
# images: tiny

# shellcheck source=tests/lab/images.sh
. "$LAB/images.sh"

# The three layers that try everything a tar can say; on top of the tiny image.
odd_layers() {
    mkdir -p /lab/build/odd-layers/{a,b,c}/tree
    local a=/lab/build/odd-layers/a/tree b=/lab/build/odd-layers/b/tree c=/lab/build/odd-layers/c/tree
    mkdir -p $a/{gone,opaque/below,many,kept}
    echo old >$a/replaced
    echo gone >$a/gone/file
    echo hidden >$a/opaque/below/file
    echo deleted >$a/deleted
    echo linked >$a/link-one
    ln $a/link-one $a/link-two
    ln -s ../kept/target $a/kept/symlink
    mknod $a/char c 1 3
    mknod $a/block b 7 200
    mkfifo $a/fifo
    cp /bin/true $a/capable
    setcap cap_net_raw+ep $a/capable 2>/dev/null ||
        python3 -c 'import os,sys; os.setxattr(sys.argv[1], "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))' $a/capable
    python3 -c 'import os,sys; os.setxattr(sys.argv[1], "user.note", b"an attribute")' $a/replaced
    chown 1234:4321 $a/kept
    chmod 3751 $a/kept
    touch -d '2001-02-03 04:05:06' $a/kept
    truncate -s 5M $a/sparse
    echo end >>$a/sparse
    (cd $a/many && seq 2000 | split -l 1 -a 4 - f)
    echo new >$b/replaced
    mkdir -p $b/opaque
    : >$b/opaque/.wh..wh..opq
    echo above >$b/opaque/above
    : >$b/.wh.deleted
    : >$b/.wh.gone
    mkdir -p $c/gone
    echo again >$c/gone/other
    : >$c/.wh.fifo
}

# listing ROOT: type, mode, owner, size, time, links, device and digest of everything below ROOT/tree;
# in words that busybox and coreutils share.
# A program started for each of thousands of files would take minutes in the guest.
LISTING='cd ROOT/tree && {
  find . -type d -exec stat -c "%n %f %u %g %Y" {} +
  find . -type l -exec stat -c "%n %f %u %g %Y" {} +
  find . -type l | while read -r f; do echo "$f -> $(readlink "$f")"; done
  find . ! -type d ! -type l -exec stat -c "%n %f %u %g %s %Y %h %t %T" {} +; } | sort'

# The odd image, in cocoon's store; /lab/build/want is the listing of what umoci makes of its layers.
need_odd_image() {
    need_image tiny
    if [ ! -s /lab/build/want ]; then
        rm -rf /lab/build/{odd-layers,odd-gzip,unpacked}
        odd_layers
        make_image odd --compression zstd --base "$(image_layout tiny)" /lab/build/odd-layers/{a,b,c}
        # umoci 0.4.7 knows gzip alone; the layers' content is the same.
        python3 "$LAB/../../os-image/oci.py" /lab/build/odd-gzip /lab/build/odd-layers/{a,b,c}
        umoci unpack --image /lab/build/odd-gzip:latest /lab/build/unpacked
        bash -c "${LISTING/ROOT//lab/build/unpacked/rootfs}" >/lab/build/listed
        (cd /lab/build/unpacked/rootfs/tree && find . -type f | sort | xargs md5sum) >>/lab/build/listed
        mv /lab/build/listed /lab/build/want
    fi
    cocoon image inspect "$REGISTRY/odd:latest" >/dev/null 2>&1 || cocoon image pull "$REGISTRY/odd:latest"
}

# busybox cannot show extended attributes: the lab host's kernel shows those of the layers.
extended_attributes() {
    local blob
    mkdir -p /lab/build/mnt
    for blob in $(find "$COCOON_ROOT/blobs" -type f); do
        mount -t erofs -o loop,ro "$blob" /lab/build/mnt 2>/dev/null || continue
        if [ -e /lab/build/mnt/tree/capable ]; then
            python3 -c 'import os; root="/lab/build/mnt/tree/"
print(os.getxattr(root+"capable", "security.capability") == os.getxattr("/lab/build/odd-layers/a/tree/capable", "security.capability"),
      os.getxattr(root+"replaced", "user.note").decode())'
        fi
        umount /lab/build/mnt
    done
}

lab_guest_sees_what_umoci_unpacks() { # 600 s
    # Not the engines differ in this, but what is on the disk.
    only_if_long cloud-hypervisor
    need_odd_image
    assert_eq "$(extended_attributes)" "True an attribute" "attributes in the layer"
    cocoon vm run --name odd --memory 512M --storage 1G --cpu 1 "$REGISTRY/odd:latest"
    wait_console odd "cocoon-tiny ready" "$TINY_BOOT_SECONDS"
    # As a file, since a console of 80 columns would break the lines of what is typed.
    local address
    address=$(vm_field odd '.network_configs[0].network.ip')
    printf '%s\n' "${LISTING/ROOT/}" "find . -type f | sort | xargs md5sum" >/lab/build/listing.sh
    (cd /lab/build && exec python3 -m http.server --bind 10.88.0.1 8000) &
    at_exit "kill $!"
    wait_for 60 "the web server" curl -sf -o /dev/null http://10.88.0.1:8000/listing.sh
    in_guest odd "wget -q -O /tmp/listing.sh http://10.88.0.1:8000/listing.sh; sh /tmp/listing.sh >/www/listing; echo done"
    curl -sf "http://$address/listing" >/lab/build/got
    diff /lab/build/want /lab/build/got
}
