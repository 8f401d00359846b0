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


# The steps of World::feature.
def feature(k, flow=0): return bytes([0x80 | flow << 4 | k])
def habits(flow, *of): return feature(0, flow) + bytes([sum(of)])
def sack(flow, behind, *blocks, how=0): return feature(1, flow) + bytes([how | len(blocks)]) + u16(behind) + b"".join(u16(gap) + u16(length) for gap, length in blocks)
def urgent(flow, pointer, n): return feature(2, flow) + u16(pointer) + u16(n)
def flood(n): return feature(3) + bytes([n])
def merged(flow, size, n, how=0, extra=b""): return feature(4, flow) + u16(size) + u16(n) + bytes([how]) + extra
def listen_again(how): return feature(5) + bytes([how])
def device(how): return feature(6) + bytes([how])
def stamped(flow, n, how=1): return feature(7, flow) + u16(n) + bytes([how])
def socket_options(connection, what, amount=0): return feature(8) + bytes([connection, what]) + u16(amount)
def open_with(flow, how): return feature(9, flow) + bytes([how])
def reading(): return feature(10)
def datagram_options(flow, how, n, segment=0, ttl=0): return feature(11, flow) + bytes([how]) + u16(n) + u16(segment) + bytes([ttl])
def ack_all(flow): return feature(12, flow)
def sleep(n): return feature(13) + u16(n)


STAMPS, ECN, ASK, COOKIE, SYN_DATA, CE, NO_OPTIONS = (1 << n for n in range(7))
NEW_RENO, CUBIC, BBR, DCTCP = 1, 2, 3, 4
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
    "found_text_in_syn_ack": open_(4) + segment(4, SYN) + turn() + segment(4, SYN | ACK, payload=500) + turn() + segment(4, ACK, seq=1, payload=900) + turn(),
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
    "stamped_and_sacked": b"".join(habits(f, STAMPS) + handshake(f) + app(SEND, 0, 50000) + turn() + stamped(f, 500) + sleep(20) + sack(f, 8000, (1000, 3000), (500, 1500)) + sack(f, 8000, (1000, 3000), (500, 2500)) + sleep(400) + ack_all(f) + sleep(400) + ack_all(f) for f in (0, 1)),
    "duplicate_sack": habits(0, STAMPS) + handshake(0) + app(SEND, 0, 30000) + turn() + sack(0, 9000, (2000, 4000)) + sleep(30) + sack(0, 0, (0xf000, 1000), how=4) + sleep(300) + ack_all(0),
    "marked": habits(0, ECN, CE) + handshake(0) + stamped(0, 900, 64) + stamped(0, 900, 64 + 32) + app(SEND, 0, 20000) + turn() + sack(0, 3000, how=8) + sleep(50) + ack_all(0) + app(SEND, 0, 9000) + turn() + ack_all(0),
    "dctcp_marked": listen_again(DCTCP) + habits(1, ECN) + handshake(1) + b"".join(stamped(1, 900, 64 * (n & 1)) for n in range(8)) + app(SEND, 0, 60000) + b"".join(turn() + sack(1, 1500, how=8) for n in range(6)) + ack_all(1),
    "bbr_paced": listen_again(BBR) + habits(0, STAMPS) + handshake(0) + app(SEND, 0, 65000) + b"".join(sleep(40) + ack_all(0) + app(SEND, 0, 20000) for n in range(12)) + sack(0, 5000, (3000, 1000)) + sleep(900),
    "fast_open": listen_again(8) + habits(0, ASK) + handshake(0) + app(ABORT) + habits(0, COOKIE, SYN_DATA) + handshake(0) + app(SEND, 0, 2000) + turn() + ack_all(0) + habits(1, COOKIE, SYN_DATA) + handshake(1),
    "fast_open_active": open_with(4, 8) + handshake(4) + app(SEND, 0, 100) + app(ABORT) + open_with(4, 8 + 16) + handshake(4) + sleep(3000) + open_with(5, 8 + 16) + sleep(9000) + handshake(5),
    "cookies": flood(20) + handshake(0) + handshake(1) + habits(2, STAMPS) + handshake(2) + text(2, 700) + app(SEND, 0, 5000) + turn() + ack_all(0) + flood(21) + sleep(60000) + text(0, 10),
    "urgent": handshake(0) + urgent(0, 1, 1) + urgent(0, 100, 50) + text(0, 60) + urgent(0, 0, 10) + app(SEND, 0, 3000) + socket_options(0, 0x80, 0) + turn() + app(SEND, 0, 300) + socket_options(0, 0x80, 299) + turn() + ack_all(0) + reading() + urgent(0, 700, 900) + text(0, 300),
    "merged": handshake(0) + merged(0, 1448, 30000) + turn() + merged(0, 1448, 20000, 1, u16(-5000)) + turn() + reading() + merged(0, 1000, 60000, 4, u16(777)) + turn() + app(CONSUME, 0, 1460) + text(0, 10) + merged(0, 1, 100, 2),
    "super_packets": device(1) + handshake(0) + handshake(1) + app(SEND, 0, 65000) + app(SEND, 1, 65000) + turn() + ack_all(0) + ack_all(1) + sleep(50) + sack(0, 20000, (3000, 4000)) + sack(1, 20000, (3000, 4000)) + device(0) + sleep(400) + ack_all(0) + ack_all(1) + device(1) + socket_options(0, BBR | 8, 9000) + app(SEND, 0, 60000) + sleep(500) + ack_all(0),
    "old_peer": habits(0, NO_OPTIONS) + handshake(0) + app(SEND, 0, 9000) + turn() + segment(0, ACK, ack=-536) * 4 + sleep(300) + ack_all(0) + habits(1, NO_OPTIONS) + handshake(1) + text(1, 900),
    "paws": habits(0, STAMPS) + handshake(0) + stamped(0, 100) + stamped(0, 100, 16 + 1) + stamped(0, 100, 16 + 1) + stamped(0, 100, 16 + 1) + app(SEND, 0, 100) + turn() + ack_all(0),
    "deferred": listen_again(16 + 64) + handshake(0) + sleep(1500) + text(0, 10) + handshake(1) + sleep(9000) + listen_again(128) + handshake(2) + merged(2, 1000, 9000),
    "changing": handshake(0) + app(SEND, 0, 60000) + b"".join(socket_options(0, c) + turn() + ack_all(0) + app(SEND, 0, 30000) for c in (NEW_RENO, BBR, CUBIC, DCTCP, BBR)) + socket_options(0, 32, 100) + sleep(300) + device(2 + 4) + sleep(900) + device(2 + 8) + sleep(900) + ack_all(0),
    "datagram_options": datagram_options(0, 3, 5000, 1000) + datagram_options(1, 8, 5000, 100, 3) + datagram_options(0, 16 + 32, 20, 0, 1) + udp(0, b"back") + udp(1, b"no") + icmp(0, 3, 3) + datagram_options(0, 16, 65507, 0) + datagram_options(1, 7, 65000, 1100),
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


# --- fragments: the steps of fuzz_fragments.cc. Datagram n: even IPv4, odd IPv6; lengths in pairs 24 64 1000 1480 2960 ...
def frag(d, offset, units): return bytes([d << 4]) + u16(offset // 8) + bytes([units - 1])
def whole(d, units, backwards=False): return bytes([d << 4 | (6 if backwards else 5), units - 1])
def bent(d, offset, units, odd, flags, bend=b""): return bytes([d << 4 | 7]) + u16(offset // 8) + bytes([units, odd, flags]) + bend
def frag_wait_ms(n): return bytes([8]) + u16(n)
def frag_wait_s(n): return bytes([10, n])
def frag_raw(d, data, bend=b"\0"): return bytes([d << 4 | 9, len(data)]) + data + bend
def rest(d): return bytes([d << 4 | 11])


fragments = {
    "in_order": b"".join(whole(d, 100) for d in range(16)),
    "backwards": b"".join(whole(d, 64, True) for d in range(16)),
    "interleaved": b"".join(frag(d, at, 64) for at in range(0, 3000, 512) for d in (8, 9, 10, 11)),
    "a_hole_filled_late": frag(4, 0, 50) + frag(4, 800, 50) + frag_wait_ms(9000) + frag(4, 400, 50) + rest(5),
    "twice": frag(4, 0, 50) + frag(4, 0, 50) + frag(4, 400, 75) + frag(5, 0, 50) + frag(5, 0, 50) + frag(5, 400, 75),
    "overlap": frag(4, 0, 50) + frag(4, 392, 50) + rest(4) + rest(4) + frag(5, 0, 50) + frag(5, 392, 50) + rest(5) + frag_wait_s(61) + rest(5),
    "too_late": frag(4, 0, 50) + frag(5, 0, 50) + frag_wait_s(31) + frag(4, 400, 75) + frag(5, 400, 75) + frag_wait_s(61) + rest(4) + rest(5),
    "no_room": b"".join(frag(d, at, 180) for at in (0, 8000, 16000, 24000) for d in range(16)) + whole(14, 185) + whole(15, 185),
    "two_ends": bent(4, 400, 8, 3, 0) + bent(4, 800, 8, 0, 0) + rest(4) + bent(5, 400, 8, 3, 0) + bent(5, 800, 8, 1, 0) + rest(5) + whole(4, 60) + whole(5, 60),
    "too_long": bent(14, 65528, 8, 7, 0) + bent(15, 65528, 8, 7, 0) + bent(15, 65528, 0, 7, 0),
    "tiny": bent(0, 0, 0, 7, 1) + bent(1, 0, 0, 7, 1) + bent(0, 8, 0, 0, 1) + bent(1, 8, 0, 3, 1) + rest(0) + rest(1),
    "bent_headers": bent(4, 0, 50, 0, 3, bytes([1, 1, 3])) + bent(4, 400, 75, 0, 2, bytes([1, 1, 1])) + bent(5, 0, 50, 0, 3, bytes([1, 40, 17 ^ 6])) + frag_raw(5, bytes([58, 0, 0, 1, 0, 0, 0, 9]) + bytes(16)) + whole(5, 60),
}


# --- icmp: the steps of fuzz_icmp.cc. Flow n: even IPv4, odd IPv6; in pairs NewReno, CUBIC, BBR, DCTCP
def quote(flow, type_, code, rest=0, length=0, bend=b"\0"): return bytes([flow << 4, 0, type_, code, rest >> 16]) + u16(rest) + bytes([length]) + bend
def quote_at(flow, sequence, type_, code, rest=0): return bytes([flow << 4, 1]) + u16(sequence) + bytes([type_, code, rest >> 16]) + u16(rest) + bytes([0, 0])
def quote_udp(family, type_, code, rest=0): return bytes([3, family, type_, code, rest >> 16]) + u16(rest) + bytes([0, 0])
def icmp_send(flow, n): return bytes([flow << 4 | 4]) + u16(n)
def icmp_ack(flow): return bytes([flow << 4 | 5])
def icmp_wait(n): return bytes([6]) + u16(n)
def exchange(flow): return bytes([flow << 4 | 7])


icmp_stories = {
    "every_type_v4": icmp_send(0, 5000) + b"".join(quote(0, t, c) for t in (3, 4, 5, 11, 12) for c in range(16)) + exchange(0),
    "every_type_v6": icmp_send(1, 5000) + b"".join(quote(1, t, c, 1280) for t in (1, 2, 3, 4, 5, 127) for c in range(8)) + exchange(1),
    "not_in_flight": b"".join(icmp_send(f, 3000) + quote_at(f, s, 3 if f % 2 == 0 else 2, 4 if f % 2 == 0 else 0, 1300) for f in range(8) for s in (-1, -1000, 4000)),
    "narrower_and_narrower": b"".join(icmp_send(f, 20000) + b"".join(quote(f, 3 if f % 2 == 0 else 2, 4 if f % 2 == 0 else 0, m) + icmp_wait(50) for m in (1400, 1300, 1280, 600, 68, 0, 1400)) + icmp_ack(f) for f in range(8)),
    "in_recovery": b"".join(icmp_send(f, 30000) + icmp_wait(400) + quote(f, 3 if f % 2 == 0 else 2, 4 if f % 2 == 0 else 0, 1290) + icmp_wait(900) + icmp_ack(f) for f in range(8)),
    "datagrams": b"".join(quote_udp(0, t, c, 1300) for t in (3, 11, 12) for c in (0, 1, 3, 4)) + b"".join(quote_udp(1, t, c, 1300) for t in (1, 2, 3, 4) for c in (0, 1, 4)),
    "cut_and_bent": icmp_send(0, 100) + icmp_send(1, 100) + b"".join(quote(f, 3 - 2 * f, 3, 0, n) for f in (0, 1) for n in (1, 19, 20, 27, 28, 40, 48, 60)) + quote(0, 3, 4, 600, 0, bytes([2, 9, 17 ^ 6, 0, 1])) + quote(1, 2, 0, 1280, 0, bytes([1, 6, 44 ^ 6])),
    "queries": b"".join(quote(f, t, 0) for f in (0, 1) for t in (0, 8, 9, 13, 128, 129, 138, 200)),
}


# --- link: the steps of fuzz_link.cc. Addresses and MACs by their place in the tables there
NONE = b"\0"  # not bent
OUR4, PEER4, OTHER4, ANY4 = 0, 1, 2, 6
OUR6, PEER6, OTHER6, ROUTER6, ANY6, ALL_NODES, SOLICITED = 0, 1, 2, 3, 7, 9, 10
PEER, OTHER, OURS = 0, 1, 2


def arp(reply, to_us, mac, sender, target, bend=NONE, vlan=0): return bytes([vlan << 7 | 1, reply | to_us << 1, mac, sender, target]) + bend
def frame6(source, destination, mac, bend=NONE): return bytes([source, destination, mac]) + bend
def ns(target, source, destination, mac=PEER, hops=0, bend=NONE, vlan=0): return bytes([vlan << 7 | 3, 2, target, mac, hops]) + frame6(source, destination, mac, bend)
def na(target, source, destination, mac=PEER, flags=24, hops=0, bend=NONE): return bytes([3, 3 | flags, target, mac, hops]) + frame6(source, destination, mac, bend)
def prefix(n, flags=3, valid=200, preferred=150): return bytes([flags, n, valid, preferred])
def ra(prefixes=(), lifetime=1800, how=4, hop_limit=64, hops=0, source=ROUTER6, mtu=b"", bend=NONE): return bytes([5, how | len(prefixes)]) + b"".join(prefixes) + bytes([hop_limit]) + u16(lifetime) + bytes([0, 0, PEER]) + mtu + bytes([hops]) + frame6(source, ALL_NODES, PEER, bend)
def redirect(target, destination, source=ROUTER6, hops=0): return bytes([6, 1, target, destination, OTHER, hops]) + frame6(source, OUR6, PEER)
def mld(how, group, rest=b"", delay=1000, source=ROUTER6, destination=ALL_NODES, bend=NONE): return bytes([7, how]) + u16(delay) + bytes([group, len(rest)]) + rest + frame6(source, destination, PEER, bend)
def igmp(how, group, rest=b"", delay=10, source=PEER4, destination=9, bend=NONE): return bytes([8, how, delay, group, len(rest)]) + rest + bytes([source, destination, PEER]) + bend
def link_answer(mac=PEER, bend=NONE): return bytes([9, mac]) + bend
def link_send4(n): return bytes([10, 1, n])
def link_send6(n): return bytes([10, 0, n])
def change_group4(change, group, source=1, socket=0): return bytes([11, 1 | change << 1 | socket << 7, group, source])
def change_group6(change, group, source=1, socket=0): return bytes([11, change << 1 | socket << 7, group, source])
def link_command(how): return bytes([12, how])
def link_wait_s(n): return bytes([13]) + u16(n)
def link_wait_ms(n): return bytes([15]) + u16(n)
def echo4(source, destination, bend=NONE): return bytes([14, 0, PEER, source, destination]) + bend
def echo6(source, destination, bend=NONE): return bytes([14, 1]) + frame6(source, destination, PEER, bend)


link_stories = {
    "asked_and_answered": arp(0, 0, PEER, PEER4, OUR4) + ns(OUR6, PEER6, SOLICITED) + echo4(PEER4, OUR4) + echo6(PEER6, OUR6) + link_send4(PEER4) + link_send6(PEER6),
    "asking": link_send4(PEER4) + link_answer() + link_send4(PEER4) + link_send6(PEER6) + link_answer() + link_send6(PEER6) + link_wait_s(40) + link_send4(PEER4) + link_wait_s(6) + link_answer() + link_send6(PEER6) + link_wait_s(60),
    "unsolicited": arp(1, 1, PEER, PEER4, OUR4) + na(PEER6, PEER6, OUR6) + arp(1, 0, PEER, OTHER4, OTHER4) + na(OTHER6, OTHER6, ALL_NODES, flags=16),
    "nobody_answers": b"".join(link_send4(128 + n) + link_send6(128 + n) for n in range(60)) + link_wait_s(10) + link_send4(129) + link_send6(129) + link_wait_s(10),
    "many_askers": b"".join(arp(0, 0, PEER, 128 + n, OUR4) + ns(OUR6, 128 + n % 64, SOLICITED) for n in range(90)),
    "conflicts": arp(0, 0, PEER, OUR4, OUR4) + na(OUR6, OUR6, ALL_NODES) + link_wait_s(11) + arp(1, 0, PEER, OUR4, PEER4) + arp(0, 0, OTHER, OUR4, PEER4) + ns(OUR6, ANY6, SOLICITED) + link_wait_s(61),
    "duplicates": link_command(12) + arp(0, 0, PEER, ANY4, 3) + ns(0, ANY6, SOLICITED) + link_wait_s(5) + link_command(4) + link_command(12) + link_wait_ms(500) + arp(1, 0, PEER, 3, 3) + link_wait_s(70),
    "autoconfigured": ra([prefix(1), prefix(2)]) + link_wait_s(3) + ns(200, PEER6, 200) + link_send6(8) + link_answer() + ra([prefix(1, 3, 0, 0)], 0) + link_wait_s(200) + ra([prefix(1, 3, 255, 255)], how=12, mtu=bytes([200])) + link_wait_s(9000),
    "many_prefixes": b"".join(ra([prefix(n), prefix(n + 1), prefix(n + 2)], source=s) for n, s in zip(range(0, 60, 3), (3, 4, 192, 193) * 5)) + link_wait_s(10),
    "redirected": ra([]) + link_send6(8) + link_answer() + redirect(4, 8) + link_send6(8) + link_answer(OTHER) + redirect(8, 8) + redirect(4, 8, source=4) + redirect(4, 8, hops=230) + link_wait_s(601),
    "beyond_the_link": ns(OUR6, PEER6, SOLICITED, hops=254) + na(PEER6, PEER6, OUR6, hops=230) + ra([prefix(1)], hops=240),
    "groups": b"".join(change_group4(0, n) + change_group6(0, 11) for n in range(4)) + igmp(0, ANY4) + mld(0, ANY6) + link_wait_s(12) + igmp(0, 10, bytes([2, 125, 0, 1, 10, 0, 0, 2]), destination=10) + mld(0, 11, bytes([2, 125, 0, 1]) + bytes(16)) + change_group4(1, 1) + change_group6(1, 11) + change_group4(2, 5) + change_group4(4, 2) + link_wait_s(300),
    "old_routers": change_group4(0, 1) + igmp(0, ANY4, delay=0) + igmp(1, 10) + igmp(2, 10, destination=10) + link_wait_s(20) + mld(1, 11) + mld(2, 11) + change_group6(0, 11) + mld(0, 11, delay=100) + link_wait_s(500),
    "vlan": arp(0, 0, PEER, 5, 4, vlan=1) + ns(5, 6, SOLICITED, vlan=1) + link_send4(5) + link_send6(6) + link_wait_s(8),
    "bent_options": b"".join(ns(OUR6, PEER6, SOLICITED, bend=bytes([1, 40 + at, 1])) for at in range(24, 34)) + ra([prefix(1)], bend=bytes([1, 57, 4])) + ra([prefix(1)], bend=bytes([4, 3])) + arp(0, 0, PEER, PEER4, OUR4, bytes([1, 4, 2])),
    "down_and_up": change_group4(0, 1) + link_command(1) + link_send4(PEER4) + link_command(5) + link_wait_s(5) + link_command(6) + echo4(PEER4, 8) + echo6(PEER6, 8) + link_wait_s(10),
}

# --- datagrams: `s` is one of four sockets, `on` the interface (1, or 2: the VLAN), `to` a destination of World::destination() ---
ANY, OURS, OURS2, GROUP = 0, 1, 2, 3
UNICAST, OTHER_OURS, DIRECTED, LIMITED, GROUP_A, GROUP_B, NOBODY = 0, 2, 3, 4, 5, 6, 7
JOIN, LEAVE, JOIN_SOURCE, LEAVE_SOURCE, BLOCK, UNBLOCK = range(6)


def udp_bind(s, where, v4=1, interface=0, port=0, dual=0): return bytes([s << 4, v4 | where << 1 | interface << 3 | port << 5 | dual << 7])
def udp_connect(s, peer=0, on=1, port=0): return bytes([s << 4 | 1, peer | (on - 1) << 2 | port << 3])
def udp_disconnect(s): return bytes([s << 4 | 1, 128])
def udp_options(s, how): return bytes([s << 4 | 2, how])
def udp_group(s, change, v4=1, on=1, group=0, source=0): return bytes([s << 4 | 3, change | v4 << 3 | (on - 1) << 4 | group << 5 | source << 6])
def udp_close(s): return bytes([s << 4 | 4])
def udp_send(s, to, v4=1, on=1, more=0, length=50): return bytes([s << 4 | 5, v4 | (on - 1) << 1 | (4 if to is None else to << 3), more]) + u16(length)
def udp_in(to, v4=1, on=1, source=0, port=0, from_port=0): return bytes([6, v4 | (on - 1) << 1 | source << 2 | to << 3 | from_port << 7, port | 20])
def udp_bent(to, bend, v4=1, on=1): return bytes([8, v4 | (on - 1) << 1 | to << 3, 20]) + bend
def raw_open(s, which, v4=1, ping=0): return bytes([s << 4 | 9, v4 | ping << 1 | which << 2])
def raw_tune(s, how): return bytes([s << 4 | 10, how])
def raw_group(s, change, v4=1, on=1, group=0, source=0): return bytes([s << 4 | 11, change | v4 << 3 | (on - 1) << 4 | group << 5 | source << 6])
def raw_close(s): return bytes([s << 4 | 12])
def raw_send(s, how, data=b"", length=0): return bytes([s << 4 | 13, how]) + (u16(length) if how & 1 else bytes([length])) + data
def message_in(to, v4=1, on=1, routing=0, reply=0, socket=0, bend=None): return bytes([14, v4 | (on - 1) << 1 | to << 3 | routing << 6 | (bend is not None) << 7, reply | 40 | socket << 6]) + (bend or b"")
def datagram_wait_ms(n): return bytes([15]) + u16(n)


everywhere = b"".join(udp_in(to, v4, on, source) for to in range(8) for v4 in (0, 1) for on in (1, 2) for source in (0, 1))
datagram_stories = {
    "nobody": everywhere + datagram_wait_ms(2000) + everywhere,
    "best_fit": udp_bind(0, ANY) + udp_bind(1, OURS) + udp_bind(2, ANY, interface=2) + udp_bind(3, ANY, v4=0, dual=1) + everywhere,
    "one_of_alike": b"".join(udp_bind(s, ANY) for s in range(4)) + everywhere + udp_close(2) + everywhere,
    "connected": udp_bind(0, ANY) + udp_bind(1, ANY) + udp_connect(1) + udp_bind(2, OURS2) + udp_connect(2, on=2) + everywhere + udp_in(UNICAST, from_port=1) + udp_disconnect(1) + everywhere,
    "groups": udp_bind(0, ANY) + udp_bind(1, GROUP) + udp_bind(2, ANY, v4=0, dual=1) + udp_options(2, 0) + udp_options(0, 4) + everywhere + udp_group(0, JOIN) + udp_group(2, JOIN, v4=0) + udp_group(2, JOIN, on=2) + everywhere + udp_group(0, BLOCK, source=0) + udp_group(1, JOIN_SOURCE, source=1) + everywhere + udp_group(0, UNBLOCK) + udp_group(0, LEAVE) + udp_group(1, LEAVE_SOURCE, source=1) + everywhere,
    "sends": udp_bind(0, ANY) + udp_bind(1, ANY, v4=0, dual=1) + udp_group(0, JOIN) + b"".join(udp_send(s, to, v4, on, more, length) for s in (0, 1) for to in (None, *range(8)) for v4 in (0, 1) for on in (1, 2) for more, length in ((48, 60), (2, 900), (0, 8000), (13, 1600))),
    "full": udp_bind(0, ANY) + udp_options(0, 12) + raw_open(0, 0) + raw_tune(0, 8) + everywhere,
    "raw_copies": raw_open(0, 0) + raw_open(1, 0, v4=0) + raw_open(2, 1) + raw_open(3, 2) + everywhere + b"".join(message_in(to, v4, on, routing) for to in range(8) for v4 in (0, 1) for on in (1, 2) for routing in (0, 1)) + raw_tune(2, 32) + raw_tune(0, 3) + raw_tune(1, 2) + raw_group(3, JOIN) + raw_group(0, JOIN_SOURCE, source=1) + everywhere + message_in(GROUP_A, routing=1),
    "raw_sends": b"".join(raw_open(s, s, v4) + b"".join(raw_send(s, how, b"", 60) + raw_send(s, how | 1, b"", 3000) for how in (0, 2, 4, 10, 0x4a, 0x80, 0x88)) for v4 in (0, 1) for s in range(4)) + raw_tune(3, 16) + raw_send(3, 2, b"", 60) + raw_send(3, 2, b"", 0),
    "pings": b"".join(raw_open(s, 1, v4, ping=1) for s, v4 in enumerate((1, 0, 1, 0))) + b"".join(raw_send(s, how, b"", 40) for s in range(4) for how in (2, 6, 10)) + b"".join(message_in(to, v4, on, 0, 1, s) for to in range(8) for v4 in (0, 1) for on in (1, 2) for s in range(4)),
    "bent": udp_bind(0, ANY) + udp_bind(1, ANY, v4=0) + raw_open(0, 0) + b"".join(udp_bent(UNICAST, bytes([1, at, 1]), v4, on) for at in range(0, 48, 3) for v4 in (0, 1) for on in (1, 2)) + message_in(UNICAST, bend=bytes([4, 9])) + message_in(UNICAST, routing=1, bend=bytes([8, 9])),
}

for folder, seeds in (("frames", frames), ("tcp_options", options), ("fragments", fragments), ("icmp", icmp_stories), ("link", link_stories),
                      ("datagrams", datagram_stories)):
    (HERE / folder).mkdir(parents=True, exist_ok=True)
    for name, data in seeds.items():
        (HERE / folder / name).write_bytes(data)
