#!/usr/bin/env python3
"""unpack-kernel.py BZIMAGE VMLINUX: takes the ELF kernel out of an xz-compressed bzImage.

Offsets are those of the Linux/x86 boot protocol: setup_sects at 0x1f1, payload_offset and
payload_length at 0x248.
"""

import lzma
import struct
import sys


def main():
    source, target = sys.argv[1:]
    with open(source, "rb") as file:
        image = file.read()
    start, length = struct.unpack_from("<II", image, 0x248)
    start += (image[0x1F1] + 1) * 512
    kernel = lzma.LZMADecompressor().decompress(image[start:start + length])
    if not kernel.startswith(b"\x7fELF"):
        sys.exit(f"{source}: the payload is no ELF file")
    with open(target, "wb") as file:
        file.write(kernel)


if __name__ == "__main__":
    main()
