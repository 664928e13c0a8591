# Pulling OCI images: what is stored, what is refused.
# images: tiny
# engines: none
# machine: none

# shellcheck source=tests/lab/images.sh
. "$LAB/images.sh"

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
    assert_eq "$(cocoon image list -o json | json 'map(select(.name | endswith("/tiny:latest"))) | length')" 1 "entries"
    assert_eq "$(cocoon image inspect "$REGISTRY/tiny:latest" | json .type)" oci "type"
    assert_eq "$(cocoon image list -q | wc -l)" "$(cocoon image list -o json | json length)" "ids of image list -q"
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
    small_layer extra
    make_image tiny-extra --base "$(image_layout tiny)" /lab/build/extra.tree
    local before after
    before=$(find "$COCOON_ROOT/blobs" -type f | wc -l)
    cocoon image pull "$REGISTRY/tiny-extra:latest"
    after=$(find "$COCOON_ROOT/blobs" -type f | wc -l)
    assert_eq $((after - before)) 1 "new files for an image that adds one layer"
    cocoon image rm "$REGISTRY/tiny-extra:latest"
}

# The compressed bytes of the layout's uppermost layer stay right; what its config promises is inside
# them becomes wrong.
lie() {
    python3 - "$1" <<'EOF'
import hashlib, json, sys
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
}

lab_truncated_tampered_and_lying_layers_are_refused() { # 240 s
    need_image tiny
    cocoon gc
    local before case
    before=$(stored)
    for case in truncated tampered lying; do
        small_layer $case
        make_image bad-$case --base "$(image_layout tiny)" /lab/build/$case.tree
    done
    truncate -s -5000 "$(layer_file /lab/build/bad-truncated 2)"
    printf X | dd of="$(layer_file /lab/build/bad-tampered 2)" bs=1 seek=100000 conv=notrunc status=none
    lie /lab/build/bad-lying
    push /lab/build/bad-lying bad-lying
    # The registry is asked again and again for what is missing, for a quarter of a minute.
    (refused "ends layer" cocoon image pull "$REGISTRY/bad-truncated:latest") &
    refused "arrived as" cocoon image pull "$REGISTRY/bad-tampered:latest"
    refused "unpacks to" cocoon image pull "$REGISTRY/bad-lying:latest"
    wait $!
    assert_lacks "$(cocoon image list)" bad- "image list"
    cocoon gc
    assert_eq "$(stored)" "$before" "what refused pulls leave"
}

lab_image_without_kernel_is_refused() {
    need_cocoon
    small_layer nokernel
    make_image nokernel /lab/build/nokernel.tree
    refused "vmlinuz" cocoon image pull "$REGISTRY/nokernel:latest"
}

lab_gc_dry_run_lists_and_deletes_nothing() { # 240 s
    need_image tiny
    cocoon image rm "$REGISTRY/tiny:latest"
    local before
    before=$(find "$COCOON_ROOT/blobs" -type f | sort)
    [ -n "$(cocoon gc --dry-run 2>&1)" ] || fail "gc --dry-run says nothing"
    assert_eq "$(find "$COCOON_ROOT/blobs" -type f | sort)" "$before" "blobs"
}
