// Plays the daemon's side of one segment and its control connections, without a stack: for tests of the shim.
//
// A thread of its own answers control messages and looks at dirty sockets as Tenant does. What "the network" does is told
// by the test: deliver bytes, close, reset, release nothing (a full window). Every public method may be called from the
// test's thread. Waiting is for a condition with a deadline, never for a time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "preload/client.h"
#include "shm/base/unique_fd.h"
#include "shm/segment.h"

namespace culvert::test {

class FakeDaemon {
public:
    struct Options {
        shm::Geometry geometry{128, 64, 256, 256, 16, 8, 8};
        std::uint32_t spin_us = 0;
        std::optional<std::string> policy = {};  // of [[program]]
    };
    FakeDaemon();
    explicit FakeDaemon(Options options);
    ~FakeDaemon();

    /// Attaches this process and makes the client its own. Null on failure.
    preload::Client* attach();
    /// kill -9: closes every control connection and does nothing more.
    void die();

    shm::Segment& segment() { return *segment_; }

    // --- the network ---------------------------------------------------------------------------------------------
    /// Destinations below 10.77.0.0/16 are behind Culvert, with this source address (bindable in the kernel).
    static constexpr std::uint8_t kSource[4] = {127, 0, 0, 2};
    /// Port of the remote side that refuses / that never answers.
    static constexpr std::uint16_t kRefusingPort = 9;
    static constexpr std::uint16_t kSilentPort = 10;

    /// A connection from `remote_port` of 10.77.0.9 arrives at the listener. Its record, or nothing: queue full.
    std::optional<std::uint32_t> arrive(std::uint32_t listener, std::uint16_t remote_port);
    void deliver(std::uint32_t record, const std::string& bytes, std::uint32_t bytes_per_block = shm::kBlockSize);
    void deliver_datagram(std::uint32_t record, std::uint16_t remote_port, const std::string& bytes);
    /// The same with a header of the test's own; remote, local_address and length are filled in where they are empty.
    void deliver_datagram(std::uint32_t record, shm::DatagramHeader header, const std::string& bytes);
    /// An entry of the error queue, and its errno as the socket's error.
    void deliver_error(std::uint32_t record, shm::DatagramErrorHeader header, const std::string& bytes);
    void establish(std::uint32_t record);
    /// The urgent octet will be, or is, at `position` of what was and will be delivered; `octet`: it is there.
    void announce_urgent(std::uint32_t record, std::uint64_t position, std::optional<char> octet = {});
    void peer_closes(std::uint32_t record);
    void reset(std::uint32_t record, int error);
    /// Whatever the application sends comes back.
    void echo(std::uint32_t record);
    /// The peer acknowledges nothing until resume.
    void hold_acknowledgements(std::uint32_t record);
    void resume(std::uint32_t record);
    void refuse_operations(int error) { refuse_ = error; }
    /// Of every route and connected datagram socket.
    void set_path_mtu(std::uint32_t mtu) { path_mtu_ = mtu; }
    /// Operations of groups that were asked for; they are answered with `group_answer`.
    struct GroupCall {
        shm::Operation operation;
        std::uint32_t interface;
        shm::WireEndpoint group, source;
    };
    std::vector<GroupCall> group_calls();
    std::atomic<int> group_answer{0};
    /// Raw and ping sockets: what GrantRaw is answered, what kBindRaw is, and how many came of each.
    std::atomic<int> grant_answer{0};
    std::atomic<int> bind_raw_answer{0};
    std::atomic<std::uint32_t> grants{0};
    std::atomic<std::uint32_t> raw_binds{0};
    /// Of the descriptor that came with the last grant: SO_TYPE.
    std::atomic<int> granted_type{0};
    /// Dead connections that were reported, and the local ports of the sockets that prove it, one for each.
    struct Reported {
        shm::DeadFlow flow;
        std::uint16_t proven_port;
    };
    std::vector<Reported> reported();
    /// The operations that a raw socket was told of, latest last.
    struct RawCall {
        shm::Operation operation;
        std::uint32_t argument;
        shm::WireEndpoint local, remote;
    };
    std::vector<RawCall> raw_calls();
    /// The daemon's end of the socket that stands in for a connection which has left its program; -1: it has not. Made now if
    /// `by_another` process shall have let it leave.
    int stand_in(std::uint32_t record, bool by_another = false);
    std::atomic<bool> refuse_stand_ins{false};
    /// Requests on the control connection get an answer that is none.
    void answer_nonsense() { nonsense_ = true; }

    // --- what the application did -----------------------------------------------------------------------------------
    std::string received(std::uint32_t record);
    /// How much of received() ends with the last byte that was sent with MSG_OOB; 0: none was.
    std::size_t urgent_end(std::uint32_t record);
    std::vector<std::string> datagrams(std::uint32_t record);
    bool closed(std::uint32_t record);
    bool write_shut(std::uint32_t record);
    shm::SocketOptions options(std::uint32_t record);
    /// Waits until `condition` (called with the daemon's lock held) is true; false after thirty seconds.
    bool wait_until(const std::function<bool()>& condition);
    bool wait_received(std::uint32_t record, std::size_t bytes);
    bool wait_datagrams(std::uint32_t record, std::size_t count);
    bool wait_closed(std::uint32_t record);
    /// The daemon has been told (made to look) after the application had read that much.
    bool wait_consumed(std::uint32_t record, std::uint64_t bytes);
    /// How often the daemon was made to look at the record.
    std::uint32_t looks(std::uint32_t record);
    /// The process in `slot` has gone, as far as the daemon has noticed.
    bool wait_process_gone(std::uint32_t slot);
    std::size_t free_receive_blocks();

private:
    struct Peer {
        std::string received;
        std::vector<std::string> datagrams;
        bool echo = false;
        bool holding = false;
        bool closed = false;
        bool write_shut = false;
        bool datagram = false;
        bool stream = false;
        std::uint64_t unacknowledged = 0;
        std::size_t urgent_end = 0;
        std::uint64_t consumed = 0;  // rx_consumed at the last look
        std::uint32_t looks = 0;
        std::vector<std::uint32_t> kept;  // blocks of unacknowledged data
        std::uint32_t operation_done = 0;
    };
    struct Control {
        UniqueFd fd;
        std::uint32_t slot = shm::kNoIndex;
    };

    void run();
    void turn();
    void look(std::uint32_t record);
    void operation(std::uint32_t record);
    void serve(Control& control, bool& gone);
    void process_gone(std::uint32_t slot);
    void free_record(std::uint32_t record);
    void push(std::uint32_t record, const std::vector<std::string>& blocks, std::uint64_t counted, bool datagram);
    void notify(std::uint32_t record);
    void collect_returned();
    std::uint32_t take_receive_block();

    Options options_;
    std::optional<shm::Segment> segment_;
    UniqueFd memory_;
    UniqueFd doorbell_;
    UniqueFd wake_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::map<std::uint32_t, Peer> peers_;
    std::vector<Control> controls_;
    std::vector<std::uint32_t> free_receive_;
    std::vector<std::uint32_t> free_records_;
    std::vector<UniqueFd> queues_;
    std::map<std::uint32_t, std::uint32_t> queue_owners_;  // process slots
    std::uint32_t next_accept_queue_ = 0;
    std::map<std::uint32_t, std::uint32_t> tails_;  // by listener
    std::atomic<int> refuse_{0};
    std::atomic<std::uint32_t> path_mtu_{0};
    std::vector<GroupCall> group_calls_;
    std::vector<RawCall> raw_calls_;
    std::vector<Reported> reported_;
    void make_stand_in(std::uint32_t record);
    struct StandIn {
        UniqueFd ours, theirs;
    };
    std::map<std::uint32_t, StandIn> stand_ins_;
    std::atomic<bool> nonsense_{false};
    bool stopping_ = false;
    std::atomic<bool> dead_{false};
    std::thread thread_;
};

}  // namespace culvert::test
