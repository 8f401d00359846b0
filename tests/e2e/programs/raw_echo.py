"""Pings ADDRESS from a raw socket and says what came back. Usage: raw_echo.py ADDRESS...

One line of JSON a reply: who answered, and the length of what was received (over IPv4 with the IP header). Goes on living
with its sockets open until its standard input ends.
"""
import json
import os
import socket
import struct
import sys

SOL_RAW, ICMP_FILTER, ICMP6_FILTER = 255, 1, 1


def checksum(data):
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xffff)
    return ~(total + (total >> 16)) & 0xffff


def ping(address):
    v4 = ":" not in address
    identifier = os.getpid() & 0xffff
    body = struct.pack(">HH", identifier, 1) + b"raw!"
    if v4:
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        raw.setsockopt(SOL_RAW, ICMP_FILTER, struct.pack("I", ~1 & 0xffffffff))  # echo replies pass
        packet = struct.pack(">BBH", 8, 0, checksum(struct.pack(">BBH", 8, 0, 0) + body)) + body
    else:
        raw = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        blocked = bytearray(b"\xff" * 32)
        blocked[129 // 8] &= ~(1 << 129 % 8) & 0xff
        raw.setsockopt(socket.IPPROTO_ICMPV6, ICMP6_FILTER, bytes(blocked))
        packet = struct.pack(">BBH", 128, 0, 0) + body  # the checksum is not ours to make
    raw.settimeout(10)
    raw.sendto(packet, (address, 0))
    while True:
        data, sender = raw.recvfrom(2000)
        if data[-8:] == body and data[20 if v4 else 0] == (0 if v4 else 129):
            print(json.dumps({"from": sender[0], "length": len(data)}), flush=True)
            return raw


sockets = [ping(address) for address in sys.argv[1:]]
sys.stdin.read()
