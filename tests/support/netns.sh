# Two hosts for shell scripts: network namespaces joined by veth pairs, with the same names and addresses as netns.py.
#
#   . tests/support/netns.sh
#   lab_open [MTU [LINKS]]      makes them and arranges that they go at any exit; sets $lab_server $lab_client $lab_dir
#   on_server CMD... / on_client CMD...           runs a command on a host
#   start HOST NAME CMD...                        starts one in the background, output to $lab_dir/NAME.log; sets $started (its pid)
#   start_daemon [CMD-PREFIX...]                  culvertd on the server's last link; returns when it answers; sets $daemon $control
#   until_true SECONDS WHAT CMD...                asks again and again until CMD succeeds
#   counter NAME                                  one of the daemon's counters
#
# Link N (from 0) joins veth$N of both: 10.77.N.1 (server) and 10.77.N.2 (client), fd77:N+1::1 and fd77:N+1::2.
# Everything is removed by a trap on EXIT, which bash also runs after Ctrl-C and SIGTERM.

: "${CULVERT_BIN:=build/release/bin}"
lab_server=culvert-server-$$ lab_client=culvert-client-$$
lab_dir=
lab_pids=()

lab_die() { echo "$(basename "$0"): $*" >&2; exit 1; }
on_server() { ip netns exec "$lab_server" "$@"; }
on_client() { ip netns exec "$lab_client" "$@"; }

# Removes one namespace and whatever still runs in it; it is ours alone.
lab_delete() {
    [[ -e /run/netns/$1 ]] || return 0
    local pid
    for pid in $(ip netns pids "$1"); do kill -9 "$pid" 2>/dev/null || true; done
    ip netns del "$1"
}

# Namespaces of scripts that are no more (kill -9).
lab_sweep() {
    local name pid
    for name in $(ip netns list | awk '{print $1}' | grep -E '^culvert-(server|client)-[0-9]+(-[0-9]+)?$' || true); do
        pid=$(cut -d- -f3 <<<"$name")
        [[ -e /proc/$pid ]] || lab_delete "$name"
    done
}

lab_close() {
    local pid
    # Asked to end first, in the order opposite to their start; what stays is killed with its namespace.
    for ((i = ${#lab_pids[@]} - 1; i >= 0; i--)); do kill "${lab_pids[i]}" 2>/dev/null || true; done
    local end=$((SECONDS + 5))
    for pid in "${lab_pids[@]}"; do
        while kill -0 "$pid" 2>/dev/null && [[ $SECONDS -lt $end ]]; do sleep 0.02; done
    done
    lab_delete "$lab_server"
    lab_delete "$lab_client"
    wait 2>/dev/null || true
    [[ -z $lab_dir ]] || rm -rf "$lab_dir"
    lab_pids=() lab_dir=
}

lab_open() {
    local mtu=${1:-1500} links=${2:-1} link
    [[ $EUID -eq 0 ]] || lab_die "root is needed: network namespaces and XDP"
    trap lab_close EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    lab_sweep
    lab_dir=$(mktemp -d /tmp/culvert-lab-XXXXXX)
    chmod 755 "$lab_dir"
    ip netns add "$lab_server"
    ip netns add "$lab_client"
    ip -n "$lab_server" link set lo up
    ip -n "$lab_client" link set lo up
    for ((link = 0; link < links; link++)); do
        ip -n "$lab_server" link add "veth$link" mtu "$mtu" type veth peer name "veth$link" mtu "$mtu" netns "$lab_client"
        lab_configure "$lab_server" "$link" 1
        lab_configure "$lab_client" "$link" 2
    done
    lab_link=$((links - 1))
    for ((link = 0; link < links; link++)); do on_client ping -q -c 1 -W 5 "10.77.$link.1" >/dev/null; done
}

lab_configure() {
    ip -n "$1" address add "10.77.$2.$3/24" dev "veth$2"
    ip -n "$1" address add "fd77:$(($2 + 1))::$3/64" dev "veth$2" nodad
    ip -n "$1" link set "veth$2" up
}

until_true() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [[ $SECONDS -lt $end ]] || lab_die "waited in vain for $what"
        sleep 0.02
    done
}

start() {
    local host=$1 name=$2
    shift 2
    setsid ip netns exec "culvert-$host-$$" "$@" >"$lab_dir/$name.log" 2>&1 </dev/null &
    started=$!
    lab_pids+=("$started")
}

start_daemon() {
    control=$lab_dir/control.sock
    start server culvertd "$@" "$CULVERT_BIN/culvertd" --interface "veth$lab_link" --socket "$control"
    daemon=$started
    local end=$((SECONDS + 15))
    until "$CULVERT_BIN/culvert" stat --socket "$control" >/dev/null 2>&1; do
        kill -0 "$daemon" 2>/dev/null || { cat "$lab_dir/culvertd.log" >&2; lab_die "culvertd did not start"; }
        [[ $SECONDS -lt $end ]] || { cat "$lab_dir/culvertd.log" >&2; lab_die "culvertd does not answer"; }
        sleep 0.02
    done
}

counter() {
    "$CULVERT_BIN/culvert" stat --socket "$control" --json |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["counters"][sys.argv[1]])' "$1"
}
