# Sourced by the recipes here and by tests/lab: what both need from Debian.
# Needs bash on a Debian or Ubuntu machine; packages come from the apt sources the machine has.

# All files of our archives carry this time, so that the same input gives the same bytes.
IMAGE_EPOCH=1700000000

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# need_packages NAME... installs those that are missing, quietly; all present costs one dpkg-query.
need_packages() {
    local name missing=()
    for name in "$@"; do
        dpkg-query -W -f '${Status}\n' "$name" 2>/dev/null | grep -q '^install ok installed$' ||
            missing+=("$name")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    command -v apt-get >/dev/null || die "this needs a Debian machine: cannot install ${missing[*]}"
    local as_root=()
    [ "$(id -u)" -eq 0 ] || as_root=(sudo -n)
    need_package_lists
    echo "installing ${missing[*]}" >&2
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -qq -y --no-install-recommends \
        -o Dpkg::Use-Pty=0 "${missing[@]}" >/dev/null ||
        die "apt-get could not install: ${missing[*]}"
}

# A new machine often comes without package lists, or with lists that name versions long gone.
need_package_lists() {
    local stamp=/var/lib/apt/lists
    if [ -z "$(find "$stamp" -name '*Packages*' -mmin -1440 -print -quit 2>/dev/null)" ]; then
        local as_root=()
        [ "$(id -u)" -eq 0 ] || as_root=(sudo -n)
        "${as_root[@]}" apt-get update -qq >/dev/null || echo "apt-get update failed; trying with the old lists" >&2
    fi
}

# package_version NAME prints the version that apt would install.
package_version() {
    apt-cache policy "$1" | sed -n 's/^ *Candidate: *//p'
}

# kernel_package META prints the package that holds the kernel to which linux-image-<flavour> points.
kernel_package() {
    local package
    package=$(apt-cache show --no-all-versions "$1" | sed -n 's/^Depends: \(linux-image-[^ ,]*\).*/\1/p')
    [ -n "$package" ] || die "apt knows no kernel package behind $1"
    echo "$package"
}

# unpack_kernel META DIR unpacks, but does not install, that kernel, and prints its version.
unpack_kernel() {
    local package dir=$2 version
    package=$(kernel_package "$1")
    version=${package#linux-image-}
    mkdir -p "$dir/deb"
    (cd "$dir/deb" && apt-get download -qq -o APT::Sandbox::User=root "$package" >&2) ||
        die "apt-get could not download $package"
    dpkg-deb -x "$dir"/deb/*.deb "$dir"
    rm -r "$dir/deb"
    PATH=$PATH:/usr/sbin:/sbin depmod -b "$dir" "$version"
    echo "$version"
}

# copy_modules FROM TO VERSION NAME... copies modules with all they depend on, and writes
# TO/lib/modules/VERSION/load-order: one path below TO a line, dependencies first.
copy_modules() {
    local from=$1 to=$2 version=$3 name path
    shift 3
    mkdir -p "$to/lib/modules/$version"
    for name in "$@"; do
        PATH=$PATH:/usr/sbin:/sbin modprobe -S "$version" -d "$from" --show-depends "$name" ||
            die "the kernel $version has no module $name"
    done | sed -n "s|^insmod $from\(/[^ ]*\).*|\1|p" | awk '!seen[$0]++' \
        >"$to/lib/modules/$version/load-order"
    while read -r path; do
        mkdir -p "$to${path%/*}"
        cp "$from$path" "$to$path"
    done <"$to/lib/modules/$version/load-order"
}

# pack_initramfs DIR FILE writes an uncompressed archive: under emulation gunzip costs more than reading.
pack_initramfs() {
    find "$1" -exec touch -h -d "@$IMAGE_EPOCH" {} +
    (cd "$1" && find . -print0 | LC_ALL=C sort -z |
        cpio --null --create --format=newc --reproducible --owner=0:0 --quiet) >"$2"
}

# bookworm_sources prints the machine's own sources for Debian 12, whatever mirror they name; not those
# of other vendors, and nothing where the machine is no Debian 12.
bookworm_sources() {
    local file
    (. /etc/os-release && [ "${VERSION_CODENAME:-}" = bookworm ]) || return 0
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        [ -f "$file" ] && grep -hE '^deb .* bookworm(-updates|-security)? .*main' "$file"
    done
    for file in /etc/apt/sources.list.d/*.sources; do
        [ -f "$file" ] && grep -qE '^Suites:.*bookworm' "$file" && grep -v '^#' "$file" && echo
    done
    return 0
}

# install_bookworm ROOT PACKAGES OPTION... installs Debian 12 with the packages, separated by commas, into
# the new folder ROOT: without documentation, and without what is merely recommended. The options are
# mmdebstrap's, for the hooks. Without sources of the machine's own it takes mmdebstrap's default.
install_bookworm() {
    local root=$1 packages=$2 sources from=()
    shift 2
    sources=$(bookworm_sources)
    # `-` reads the sources from standard input, in either of apt's two formats.
    [ -z "$sources" ] || from=(-)
    mmdebstrap --quiet --mode=root --variant=minbase --skip=cleanup/apt --include="$packages" \
        --aptopt='APT::Install-Recommends "false"' --dpkgopt='force-unsafe-io' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
        "$@" bookworm "$root" "${from[@]}" <<<"$sources"
}
