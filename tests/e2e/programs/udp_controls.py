"""Tells each sender what the control messages said about its datagram. Usage: udp_controls.py PORT

The answer is JSON: payload length, and what IP_PKTINFO, IP_TTL, IP_TOS, UDP_GRO and SO_TIMESTAMPNS said; it is sent from
the address to which the datagram came (IP_PKTINFO, IPV6_PKTINFO as a control message of sendmsg). Empty when told "quit".
"""
import json
import socket
import struct
import sys
import time

IP_PKTINFO, IP_RECVTOS, IP_RECVTTL = 8, 13, 12
UDP_GRO, SO_TIMESTAMPNS = 104, 35

with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    for level, name in ((socket.IPPROTO_IP, IP_RECVTTL), (socket.IPPROTO_IP, IP_RECVTOS),
                        (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO), (socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT),
                        (socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS), (socket.IPPROTO_UDP, UDP_GRO),
                        (socket.SOL_SOCKET, SO_TIMESTAMPNS)):
        server.setsockopt(level, name, 1)
    server.bind(("::", int(sys.argv[1])))
    while True:
        data, controls, _, sender = server.recvmsg(65536, 1024)
        said = {"length": len(data)}
        source = None
        for level, kind, value in controls:
            if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
                source = value
                said["address"] = socket.inet_ntop(socket.AF_INET6, value[:16])
            elif kind in (socket.IPV6_HOPLIMIT if level == socket.IPPROTO_IPV6 else socket.IP_TTL,):
                said["ttl"] = struct.unpack("i", value)[0]
            elif kind == (socket.IPV6_TCLASS if level == socket.IPPROTO_IPV6 else socket.IP_TOS):
                said["tos"] = value[0]
            elif (level, kind) == (socket.IPPROTO_UDP, UDP_GRO):
                said["gro"] = struct.unpack("i", value)[0]
            elif (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
                seconds, nanoseconds = struct.unpack("qq", value)
                said["age"] = time.time() - seconds - nanoseconds / 1e9
        server.sendmsg([json.dumps(said).encode()], [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, source)], 0, sender)
