# Images that tests make, on top of the tiny one; sourced by the files whose tests pull them.

# manifest LAYOUT prints the path of a layout's manifest.
manifest() {
    echo "$1/blobs/sha256/$(json '.manifests[0].digest | ltrimstr("sha256:")' <"$1/index.json")"
}

# unpacked_layers DIR: the tiny image's layers as DIR/0.tar, DIR/1.tar, to be packed in another way.
unpacked_layers() {
    local layout number=0 digest
    layout=$(image_layout tiny)
    mkdir -p "$1"
    for digest in $(json '.layers[].digest | ltrimstr("sha256:")' <"$(manifest "$layout")"); do
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
    local digest
    digest=$(json ".layers[$2].digest | ltrimstr(\"sha256:\")" <"$(manifest "$1")")
    echo "/lab/registry/docker/registry/v2/blobs/sha256/${digest:0:2}/$digest/data"
}
