# Pulling OCI images: what is stored, what is refused.
# images: tiny

# unpacked_layers DIR: the tiny image's layers as DIR/0.tar, DIR/1.tar, to build further images on.
unpacked_layers() {
    local layout number=0 digest
    layout=$(image_layout tiny)
    mkdir -p "$1"
    local manifest
    manifest=$(json 'd["manifests"][0]["digest"].replace("sha256:", "")' <"$layout/index.json")
    for digest in $(json '" ".join(l["digest"].replace("sha256:", "") for l in d["layers"])' <"$layout/blobs/sha256/$manifest"); do
        zcat "$layout/blobs/sha256/$digest" >"$1/$number.tar"
        number=$((number + 1))
    done
}

# make_image NAME ARGUMENTS... of oci.py; pushes the result and leaves its layout in /lab/build/NAME.
make_image() {
    local name=$1
    shift
    rm -rf "/lab/build/$name"
    mkdir -p /lab/build
    python3 "$LAB/../../os-image/oci.py" "/lab/build/$name" "$@"
    push "/lab/build/$name" "$name"
}

# layer_file LAYOUT INDEX prints where the registry keeps that layer.
layer_file() {
    local manifest digest
    manifest=$(json 'd["manifests"][0]["digest"].replace("sha256:", "")' <"$1/index.json")
    digest=$(json "d['layers'][$2]['digest'].replace('sha256:', '')" <"$1/blobs/sha256/$manifest")
    echo "/lab/registry/docker/registry/v2/blobs/sha256/${digest:0:2}/$digest/data"
}

# stored: every file that images have left, with its size.
stored() {
    find "$COCOON_ROOT/blobs" "$COCOON_ROOT/boot" -type f -printf '%P %s\n' 2>/dev/null | sort
}

small_layer() {
    rm -rf "/lab/build/$1.tree"
    mkdir -p "/lab/build/$1.tree"
    # Random, so that a cut or changed byte in the middle is data, not padding.
    head -c 200000 /dev/urandom >"/lab/build/$1.tree/$1"
}

lab_pull_lists_and_inspects_an_image() {
    need_image tiny
    assert_has "$(cocoon image list)" "$REGISTRY/tiny" "image list"
    assert_eq "$(cocoon image list -o json | json 'len([i for i in d if i["name"].endswith("/tiny:latest")])')" 1 "entries"
    assert_eq "$(cocoon image inspect "$REGISTRY/tiny:latest" | json 'd["type"]')" oci "type"
    assert_eq "$(cocoon image list -q | wc -l)" "$(cocoon image list -o json | json 'len(d)')" "ids of image list -q"
}

lab_second_pull_downloads_nothing() {
    need_image tiny
    local layout file
    layout=$(image_layout tiny)
    for file in 0 1; do
        file=$(layer_file "$layout" $file)
        mv "$file" "$file.away"
    done
    local code=0
    cocoon image pull "$REGISTRY/tiny:latest" || code=$?
    for file in 0 1; do
        file=$(layer_file "$layout" $file)
        mv "$file.away" "$file"
    done
    assert_eq $code 0 "exit code of a pull for which the registry has no layer"
}

lab_zstd_gzip_and_plain_layers_give_the_same_files() { # 240 s
    need_image tiny
    unpacked_layers /lab/build/tiny
    local before compression
    before=$(stored)
    for compression in zstd none; do
        make_image "tiny-$compression" --compression $compression /lab/build/tiny/0.tar /lab/build/tiny/1.tar
        cocoon image pull "$REGISTRY/tiny-$compression:latest"
        cocoon image rm "$REGISTRY/tiny-$compression:latest"
        cocoon gc
    done
    assert_eq "$(stored)" "$before" "what gc leaves"
}

lab_shared_layer_is_stored_once() { # 240 s
    need_image tiny
    unpacked_layers /lab/build/tiny
    small_layer extra
    make_image tiny-extra /lab/build/tiny/0.tar /lab/build/tiny/1.tar /lab/build/extra.tree
    local before after
    before=$(find "$COCOON_ROOT/blobs" -type f | wc -l)
    cocoon image pull "$REGISTRY/tiny-extra:latest"
    after=$(find "$COCOON_ROOT/blobs" -type f | wc -l)
    assert_eq $((after - before)) 1 "new files for an image that adds one layer"
    cocoon image rm "$REGISTRY/tiny-extra:latest"
}

lab_truncated_tampered_and_lying_layers_are_refused() { # 300 s
    need_image tiny
    unpacked_layers /lab/build/tiny
    cocoon gc
    local before file case
    before=$(stored)
    for case in truncated tampered lying; do
        small_layer $case
        make_image bad-$case /lab/build/tiny/0.tar /lab/build/tiny/1.tar /lab/build/$case.tree
        file=$(layer_file /lab/build/bad-$case 2)
        case $case in
        truncated) truncate -s -5000 "$file" ;;
        tampered) printf X | dd of="$file" bs=1 seek=100000 conv=notrunc status=none ;;
        lying)
            # The compressed bytes are right; what the config promises is inside them is not.
            python3 - /lab/build/bad-lying <<'EOF'
import hashlib, json, os, sys
root = sys.argv[1] + "/"
blobs = root + "blobs/sha256/"
def put(value):
    data = json.dumps(value).encode()
    digest = hashlib.sha256(data).hexdigest()
    open(blobs + digest, "wb").write(data)
    return {"digest": "sha256:" + digest, "size": len(data)}
index = json.load(open(root + "index.json"))
manifest = json.load(open(blobs + index["manifests"][0]["digest"][7:]))
config = json.load(open(blobs + manifest["config"]["digest"][7:]))
config["rootfs"]["diff_ids"][2] = "sha256:" + "0" * 64
manifest["config"].update(put(config))
index["manifests"][0].update(put(manifest))
json.dump(index, open(root + "index.json", "w"))
EOF
            push /lab/build/bad-lying bad-lying
            ;;
        esac
        refused "" cocoon image pull "$REGISTRY/bad-$case:latest"
        echo "$case: $refused_with"
        assert_lacks "$(cocoon image list)" bad-$case "image list"
    done
    cocoon gc
    assert_eq "$(stored)" "$before" "what refused pulls leave"
}

lab_image_without_kernel_is_refused() {
    need_cocoon
    small_layer nokernel
    make_image nokernel /lab/build/nokernel.tree
    refused "vmlinuz" cocoon image pull "$REGISTRY/nokernel:latest"
}

# The three layers that try everything a tar can say; on top of the tiny image.
odd_layers() {
    rm -rf /lab/build/odd
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
    (cd $a/many && seq 10000 | split -l 1 -a 4 - f)
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
# A program started for each of 10,000 files would take a quarter of an hour in the guest.
LISTING='cd ROOT/tree && {
  find . -type d -exec stat -c "%n %f %u %g %Y" {} +
  find . -type l -exec stat -c "%n %f %u %g %Y" {} +
  find . -type l | while read -r f; do echo "$f -> $(readlink "$f")"; done
  find . ! -type d ! -type l -exec stat -c "%n %f %u %g %s %Y %h %t %T" {} +; } | sort'

lab_guest_sees_what_umoci_unpacks() { # 900 s
    need_image tiny
    unpacked_layers /lab/build/tiny
    odd_layers
    make_image odd --compression zstd /lab/build/tiny/0.tar /lab/build/tiny/1.tar /lab/build/odd-layers/{a,b,c}
    cocoon image pull "$REGISTRY/odd:latest"
    # umoci 0.4.7 knows gzip alone; the layers' content is the same.
    rm -rf /lab/build/odd-gzip /lab/build/unpacked
    python3 "$LAB/../../os-image/oci.py" /lab/build/odd-gzip /lab/build/tiny/0.tar /lab/build/tiny/1.tar /lab/build/odd-layers/{a,b,c}
    umoci unpack --image /lab/build/odd-gzip:latest /lab/build/unpacked
    bash -c "${LISTING/ROOT//lab/build/unpacked/rootfs}" >/lab/build/want
    (cd /lab/build/unpacked/rootfs/tree && find . -type f | sort | xargs md5sum) >>/lab/build/want

    cocoon vm run --name odd --memory 512M --storage 1G --cpu 1 "$REGISTRY/odd:latest"
    wait_console odd "cocoon-tiny ready" "$TINY_BOOT_SECONDS"
    # As a file, since a console of 80 columns would break the lines of what is typed.
    local address
    address=$(vm_field odd 'd["network_configs"][0]["network"]["ip"]')
    printf '%s\n' "${LISTING/ROOT/}" "find . -type f | sort | xargs md5sum" >/lab/build/listing.sh
    (cd /lab/build && exec python3 -m http.server --bind 10.88.0.1 8000) &
    at_exit "kill $!"
    wait_for 60 "the web server" curl -sf -o /dev/null http://10.88.0.1:8000/listing.sh
    in_guest odd "wget -q -O /tmp/listing.sh http://10.88.0.1:8000/listing.sh; sh /tmp/listing.sh >/www/listing; echo done"
    curl -sf "http://$address/listing" >/lab/build/got
    diff /lab/build/want /lab/build/got

    # busybox cannot show extended attributes: the kernel here shows those of the layers.
    local blob found=""
    mkdir -p /lab/build/mnt
    for blob in $(find "$COCOON_ROOT/blobs" -type f); do
        mount -t erofs -o loop,ro "$blob" /lab/build/mnt 2>/dev/null || continue
        if [ -e /lab/build/mnt/tree/capable ]; then
            found=$(python3 -c 'import os; root="/lab/build/mnt/tree/"
print(os.getxattr(root+"capable", "security.capability") == os.getxattr("/lab/build/odd-layers/a/tree/capable", "security.capability"),
      os.getxattr(root+"replaced", "user.note").decode())')
        fi
        umount /lab/build/mnt
    done
    assert_eq "$found" "True an attribute" "attributes in the layer"
}
