"""Joins an IPv4 group and prints the first datagram. Usage: udp_member.py GROUP PORT INTERFACE_ADDRESS"""
import socket
import sys

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as member:
    member.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    member.bind(("", int(sys.argv[2])))
    member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(sys.argv[1]) + socket.inet_aton(sys.argv[3]))
    print("joined", flush=True)
    member.settimeout(20)
    print(member.recv(2000).decode(), flush=True)
