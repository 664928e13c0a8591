#!/usr/bin/env python3
"""Listens on this host's ends of the VMs' cables, and notes each frame in which a VM calls itself by an address
that is not its own.

    strangers.py MAC IP INTERFACE

Only what comes out of INTERFACE may be from MAC or IP. Prints "listening"; then, for each frame from another
`veth` that claims one of the two, a line that says what. Ends with SIGTERM, after a last line with the number
of frames looked at.
"""

import signal
import socket
import sys

ETH_P_ALL = 3
ETH_P_IP = 0x0800
ETH_P_ARP = 0x0806

mac, ip, own = sys.argv[1:]
mac, ip = bytes.fromhex(mac.replace(":", "")), socket.inet_aton(ip)
frames = 0


def claims(frame):
    """What of the two a frame gives as its sender."""
    kind = int.from_bytes(frame[12:14], "big")
    if frame[6:12] == mac:
        yield "the MAC"
    # The sender's two addresses in an ARP packet for IPv4 (RFC 826), the source in an IPv4 header (RFC 791).
    if kind == ETH_P_ARP and frame[22:28] == mac:
        yield "the MAC, by ARP"
    if kind == ETH_P_ARP and frame[28:32] == ip:
        yield "the IP, by ARP"
    if kind == ETH_P_IP and frame[26:30] == ip:
        yield "the IP"


def end(*_):
    print(f"{frames} frames", flush=True)
    sys.exit(0)


signal.signal(signal.SIGTERM, end)
listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
print("listening", flush=True)
while True:
    frame, (interface, _, direction, _, _) = listener.recvfrom(2048)
    # What leaves by an interface came from elsewhere.
    if direction == socket.PACKET_OUTGOING or not interface.startswith("veth") or interface == own:
        continue
    frames += 1
    for claim in claims(frame):
        print(f"{interface}: {claim}: {frame[:42].hex()}", flush=True)
