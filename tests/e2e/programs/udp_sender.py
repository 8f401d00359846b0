"""Sends datagrams in one of several ways. Usage: udp_sender.py WHAT ADDRESS PORT

segments   one send of 5500 bytes, cut into datagrams of 1000 (UDP_SEGMENT)
refused    to a port where nobody listens: prints what the error queue says about it
uncut      prints the errno of a datagram that does not fit and may not be cut
group      one datagram to a multicast group, TTL 1, through the interface with address argv[4]
"""
import errno
import json
import select
import socket
import struct
import sys

what, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
v4 = family == socket.AF_INET
UDP_SEGMENT, MSG_ERRQUEUE = 103, 0x2000

with socket.socket(family, socket.SOCK_DGRAM) as sender:
    if what == "segments":
        data = bytes(range(250)) * 22
        sender.sendmsg([data], [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("H", 1000))], 0, (address, port))
    elif what == "refused":
        level, name = (socket.IPPROTO_IP, 11) if v4 else (socket.IPPROTO_IPV6, 25)  # IP_RECVERR, IPV6_RECVERR
        sender.setsockopt(level, name, 1)
        sender.sendto(b"is anybody there?", (address, port))
        poll = select.poll()
        poll.register(sender, 0)
        assert poll.poll(10000)[0][1] & select.POLLERR
        data, controls, flags, sent_to = sender.recvmsg(2048, 512, MSG_ERRQUEUE)
        number, origin, kind, code = struct.unpack("IBBB", controls[0][2][:7])
        print(json.dumps({"data": data.decode(), "to": sent_to[:2], "errno": errno.errorcode[number], "origin": origin,
                          "type": kind, "code": code, "flags": flags}))
    elif what == "uncut":
        level, name = (socket.IPPROTO_IP, 10) if v4 else (socket.IPPROTO_IPV6, 23)  # IP_MTU_DISCOVER, IPV6_MTU_DISCOVER
        sender.setsockopt(level, name, 2)  # IP_PMTUDISC_DO
        sender.connect((address, port))
        print(sender.getsockopt(level, 14 if v4 else 24))  # IP_MTU, IPV6_MTU
        try:
            sender.send(bytes(1473))
            print("sent")
        except OSError as error:
            print(errno.errorcode[error.errno])
    elif what == "group":
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(sys.argv[4]))
        sender.sendto(b"to all who hear", (address, port))
