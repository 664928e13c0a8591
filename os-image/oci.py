#!/usr/bin/env python3
"""Packs folders and tar files as an OCI image layout, the same bytes for the same input.

    oci.py OUT [--base LAYOUT] [--tag latest] [--compression gzip|zstd|none] [--cmd /sbin/init] LAYER...

A LAYER is a folder or a tar file; the first is the lowest, on top of the layers of LAYOUT, which are
taken over as they are. OUT is created, and must not exist.
Folders are read as they are: owners, modes, times, links, devices and extended attributes.
"""

import argparse
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys

MEDIA = "application/vnd.oci.image."
SUFFIX = {"gzip": "+gzip", "zstd": "+zstd", "none": ""}


class Layout:
    """The folder OUT while it is being filled."""

    def __init__(self, root):
        self.root = root
        self.blobs = os.path.join(root, "blobs", "sha256")
        os.makedirs(self.blobs)

    def adopt(self, path, media_type):
        """Takes the file `path` as a blob and returns its descriptor."""
        digest, size = sha256(path), os.path.getsize(path)
        os.rename(path, os.path.join(self.blobs, digest))
        return {"mediaType": media_type, "digest": "sha256:" + digest, "size": size}

    def put(self, value, media_type):
        path = os.path.join(self.root, "staged")
        with open(path, "w") as file:
            json.dump(value, file, sort_keys=True)
        return self.adopt(path, media_type)

    def layer(self, source, compression):
        """Returns the descriptor and the digest of the tar inside."""
        tar, packed = os.path.join(self.root, "tar"), os.path.join(self.root, "packed")
        if os.path.isdir(source):
            subprocess.run(
                ["tar", "--create", "--file", tar, "--directory", source, "--sort=name", "--numeric-owner",
                 "--format=posix", "--pax-option=delete=atime,delete=ctime", "--xattrs", "--xattrs-include=*", "."],
                check=True)
        else:
            shutil.copyfile(source, tar)
        diff_id = "sha256:" + sha256(tar)
        compress(tar, packed, compression)
        os.remove(tar)
        return self.adopt(packed, MEDIA + "layer.v1.tar" + SUFFIX[compression]), diff_id


    def take_over(self, base):
        """Links a layout's layers into this one; returns the descriptor and the digest inside of each.

        By hard links, so that this layout is whole where the other goes; by symbolic ones to another disk."""
        def blob(descriptor):
            return os.path.join(base, "blobs", *descriptor["digest"].split(":"))

        manifest = read(blob(read(os.path.join(base, "index.json"))["manifests"][0]))
        for descriptor in manifest["layers"]:
            source, target = os.path.realpath(blob(descriptor)), os.path.join(self.blobs, os.path.basename(blob(descriptor)))
            try:
                os.link(source, target)
            except OSError:
                os.symlink(source, target)
        return list(zip(manifest["layers"], read(blob(manifest["config"]))["rootfs"]["diff_ids"]))


def read(path):
    with open(path) as file:
        return json.load(file)


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def compress(source, target, compression):
    if compression == "none":
        shutil.copyfile(source, target)
    elif compression == "zstd":
        subprocess.run(["zstd", "-q", "-f", "-6", source, "-o", target], check=True)
    else:
        with open(source, "rb") as plain, open(target, "wb") as raw:
            with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=raw, mtime=0) as packed:
                shutil.copyfileobj(plain, packed, 1 << 20)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("layers", nargs="+", metavar="LAYER")
    parser.add_argument("--base")
    parser.add_argument("--tag", default="latest")
    parser.add_argument("--compression", choices=SUFFIX, default="gzip")
    parser.add_argument("--cmd", default="/sbin/init")
    arguments = parser.parse_args()
    if os.path.exists(arguments.out):
        sys.exit(f"oci.py: {arguments.out} exists already")

    layout = Layout(arguments.out)
    layers = layout.take_over(arguments.base) if arguments.base else []
    layers += [layout.layer(source, arguments.compression) for source in arguments.layers]
    config = layout.put({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": [arguments.cmd]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]},
    }, MEDIA + "config.v1+json")
    manifest = layout.put({
        "schemaVersion": 2, "mediaType": MEDIA + "manifest.v1+json", "config": config,
        "layers": [descriptor for descriptor, _ in layers],
    }, MEDIA + "manifest.v1+json")
    manifest["annotations"] = {"org.opencontainers.image.ref.name": arguments.tag}
    with open(os.path.join(arguments.out, "index.json"), "w") as file:
        json.dump({"schemaVersion": 2, "manifests": [manifest]}, file)
    with open(os.path.join(arguments.out, "oci-layout"), "w") as file:
        json.dump({"imageLayoutVersion": "1.0.0"}, file)


if __name__ == "__main__":
    main()
