#!/usr/bin/env python3
"""Writes the hand-made part of the corpus: one file a story, in the steps of fuzz_frames.cc."""
import pathlib
import struct

HERE = pathlib.Path(__file__).parent / "corpus"


def u16(n):
    return struct.pack(">H", n & 0xFFFF)


def kind(k, flow=0):
    return bytes([flow << 4 | k])


def segment(flow, flags, seq=0, ack=0, window=8192, options=b"", payload=0):
    return kind(1, flow) + bytes([flags]) + u16(seq) + u16(ack) + u16(window) + bytes([len(options) // 4]) + options + u16(payload)


def handshake(flow): return kind(3, flow)
def wait_ms(n): return kind(4) + u16(n)
def app(what, connection=0, amount=0): return kind(5) + bytes([what, connection]) + u16(amount)
def icmp(flow, type_, code, rest=0, length=60, at=255, change=0): return kind(6, flow) + bytes([type_, code]) + u16(rest) + bytes([length, at, change])
def udp(flow, payload, extra=0): return kind(7, flow) + bytes([len(payload)]) + payload + bytes([extra])
def text(flow, n): return kind(8, flow) + u16(n)
def turn(): return kind(10)
def open_(flow): return kind(11, flow)
def fin(flow): return kind(12, flow)
def neighbor(what): return kind(13) + bytes([what])
def wait_s(n): return kind(14) + bytes([n])
def datagram(flow, n): return kind(15, flow) + u16(n)
def raw(frame): return kind(0) + u16(len(frame)) + frame


SEND, CONSUME, SHUTDOWN, ABORT, OPTIONS, CLOSE = 4, 6, 7, 8, 9, 10
FIN, SYN, RST, ACK = 1, 2, 4, 16

frames = {
    "request_and_reply": handshake(0) + text(0, 200) + app(SEND, 0, 3000) + turn() + segment(0, ACK) + app(CONSUME, 0, 200)
    + fin(0) + app(CLOSE) + turn() + segment(0, ACK, seq=0),
    "request_and_reply_v6": handshake(1) + text(1, 900) + app(SEND, 0, 500) + turn() + segment(1, ACK) + app(SHUTDOWN) + turn()
    + segment(1, ACK) + fin(1) + wait_s(61),
    "out_of_order": handshake(0) + segment(0, ACK, seq=1000, payload=500) + segment(0, ACK, seq=2000, payload=500)
    + turn() + text(0, 1000) + turn() + segment(0, ACK, seq=-400, payload=600) + turn() + text(0, 1460) + turn(),
    "lost_and_sent_again": handshake(2) + app(SEND, 0, 60000) + turn() + wait_ms(300) + wait_ms(700) + segment(2, ACK, ack=-1460)
    + segment(2, ACK, ack=-1460) + segment(2, ACK, ack=-1460) + segment(2, ACK, ack=-1460) + turn() + wait_s(3) + segment(2, ACK) + turn(),
    "selective_ack": handshake(0) + app(SEND, 0, 40000) + turn()
    + segment(0, ACK, ack=-20000, options=bytes([1, 1, 5, 10]) + bytes(8)) + turn() + wait_ms(500) + segment(0, ACK) + turn(),
    "zero_window": handshake(0) + app(SEND, 0, 60000) + turn() + segment(0, ACK, window=0) + wait_s(1) + wait_s(5)
    + segment(0, ACK, window=100) + turn() + segment(0, ACK, window=0) + app(CLOSE) + wait_s(60) + wait_s(200),
    "reader_stops": handshake(0) + app(0, 0, 0) + text(0, 1460) + turn() + app(0, 0, 100) + text(0, 1460) + turn() + app(1) + text(0, 1460) + app(CONSUME, 0, 1000) + turn(),
    "resets": handshake(0) + segment(0, RST, seq=1) + segment(0, RST, seq=-9999) + segment(0, SYN) + turn() + segment(0, RST) + handshake(0) + app(ABORT),
    "active_open": open_(4) + handshake(4) + app(SEND, 0, 100) + turn() + text(4, 10) + app(CONSUME, 0, 10) + app(CLOSE) + turn() + segment(4, ACK) + fin(4) + wait_s(61),
    "active_open_refused": open_(5) + segment(5, RST | ACK) + open_(4) + icmp(4, 3, 3),
    "simultaneous_open": open_(4) + segment(4, SYN) + turn() + segment(4, SYN | ACK) + turn() + segment(4, ACK, seq=1) + turn(),
    "simultaneous_close": handshake(0) + app(SHUTDOWN) + turn() + fin(0) + segment(0, ACK) + wait_s(61),
    "half_open_flood": b"".join(segment(i % 4, SYN, seq=i * 97) for i in range(24)) + wait_s(70),
    "accept_queue": app(2) + handshake(0) + handshake(1) + text(0, 10) + app(2) + text(0, 10) + app(3) + handshake(2),
    "path_mtu": handshake(0) + app(SEND, 0, 20000) + turn() + icmp(0, 3, 4, 600) + turn() + icmp(0, 3, 4, 0) + segment(0, ACK) + turn()
    + handshake(1) + app(SEND, 0, 20000) + turn() + icmp(1, 2, 0, 1280) + turn(),
    "icmp_noise": handshake(0) + app(SEND, 0, 100) + turn() + b"".join(icmp(0, t, c) for t in (3, 11, 12, 4, 5, 8) for c in (0, 1, 3)) + icmp(0, 3, 3, 0, 27) + icmp(0, 3, 3, 0, 40, 12, 7),
    "keepalive": handshake(0) + app(OPTIONS, 0, 4) + wait_s(255) + app(OPTIONS, 0, 16 + 200) + app(SEND, 0, 100) + wait_s(10),
    "cork_and_nagle": handshake(0) + app(OPTIONS, 0, 2) + app(SEND, 0, 10) + wait_ms(300) + app(OPTIONS, 0, 1) + app(SEND, 0, 10) + app(SEND, 0, 10) + turn() + segment(0, ACK),
    "neighbour_lost": neighbor(1 | 12) + datagram(0, 3000) + app(SEND, 0, 1) + wait_s(7) + neighbor(1 | 4) + datagram(0, 300) + neighbor(3) + open_(4) + wait_s(7),
    "datagrams": udp(0, b"hello") + udp(1, b"") + udp(0, b"short", 1) + datagram(0, 65506) + datagram(1, 1452) + datagram(0, 65507) + datagram(1, 9001) + icmp(1, 2, 0, 1300) + datagram(1, 1452) + icmp(0, 3, 3),
    "time_wait_reuse": handshake(0) + app(SHUTDOWN) + turn() + segment(0, ACK) + fin(0) + turn() + segment(0, SYN, seq=5000) + handshake(0) + wait_s(61),
    "raw_frames": raw(bytes([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]) + bytes([0x45, 0, 0, 40]) + bytes(36)) + raw(b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x86\xdd\x60" + bytes(60)) + raw(b"x"),
}

options = {
    "syn": bytes([2, 4, 5, 0xB4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7]),
    "timestamps": bytes([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]),
    "sack": bytes([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1, 1, 5, 26]) + bytes(range(24)),
    "four_blocks": bytes([1, 1, 5, 34]) + bytes(range(32)),
    "unknown": bytes([254, 6, 1, 2, 3, 4, 34, 2, 0]),
    "cookie": bytes([34, 10]) + bytes(8) + bytes([1, 1]),
    "length_zero": bytes([8, 0, 1, 1]),
    "beyond_the_end": bytes([1, 2, 4, 5]),
    "empty": b"",
}

for folder, seeds in (("frames", frames), ("tcp_options", options)):
    (HERE / folder).mkdir(parents=True, exist_ok=True)
    for name, data in seeds.items():
        (HERE / folder / name).write_bytes(data)
