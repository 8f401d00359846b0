// One simulated world, everything in it drawn from one seed: hosts, wires, weather, disturbances, connections, datagrams.
//
//   client --wire--> server                 usually
//   client --wire--> router --wire--> server     in a share of the seeds: a third stack forwards
//
//   agenda (time, what): openings, moments of applications, datagrams, disturbances, checks
//   step: to the next event of agenda, wires or stacks -> frames in -> agenda -> advance -> flush -> frames out
//
// What holds (checks.cc): no wrong byte ever; every application hears of its end; whoever ends in order has had everything;
// in fair weather, with applications that behave, everybody ends in order; nobody stands still while the link works; budgets
// hold at any moment; in the end nothing is held.
#pragma once

#include <deque>
#include <memory>
#include <queue>
#include <string>
#include <vector>

#include "tests/sim/application.h"
#include "tests/sim/datagrams.h"
#include "tests/sim/link.h"
#include "tests/sim/sim_host.h"

namespace culvert::sim {

/// What the seed has decided, before anything happens.
struct Plan {
    bool erratic = false;  // applications abort and close at any moment
    bool harsh = false;    // loss to 30 %, bursts, partitions, paths that become narrow: connections may time out
    bool tight = false;    // tables too small for all
    bool routed = false;   // a third stack between the two
    bool v6 = false;
    bool datagrams = false;
    bool crowd = false;    // hundreds of connections
    std::uint32_t mtu = 1500;
    std::size_t connections = 1;
    Weather weather;

    bool orderly() const { return !erratic && !harsh && !tight; }
    std::string describe() const;
};

struct Totals {
    std::uint64_t worlds = 0, connections = 0, bytes = 0, segments = 0, retransmits = 0, timeouts = 0, recoveries = 0,
                  out_of_order = 0, probes = 0, no_frame = 0, cookies = 0, marked = 0, forwarded = 0, reassembled = 0,
                  datagrams = 0, told_too_big = 0, merged = 0, black_holes = 0, in_order = 0, with_error = 0, both_active = 0;
    Totals& operator+=(const Totals& other);
    std::string describe() const;
};

class World final : public stack::tcp::ListenerOwner {
public:
    /// `traced`: keep a transcript of the last frames, of those whose description contains the string only.
    explicit World(std::uint64_t seed, std::string traced = "");
    ~World() override;

    void run();

    const Failures& failures() const { return failures_; }
    const Plan& plan() const { return plan_; }
    const Totals& totals() const { return totals_; }
    std::string transcript() const;
    /// "client:10000", if the first failure is about an application.
    std::string first_culprit() const;

    bool can_accept() override;
    stack::tcp::ConnectionOwner* on_accept(stack::tcp::Connection& opened) override;

private:
    static constexpr Port kFirstPort = 10000;
    static constexpr Port kServerPort = 80;
    static constexpr Port kFirstCrossedPort = 20000;  // of the server, for simultaneous openings
    static constexpr std::size_t kTranscriptLines = 40;

    enum class What : std::uint8_t { kOpen, kAct, kDatagram, kDisturb, kLook };
    struct Item {
        Instant at;
        std::uint64_t order;
        What what;
        std::size_t index;
        bool operator<(const Item& other) const { return std::tie(other.at, other.order) < std::tie(at, order); }
    };
    struct Wire {
        SimHost* from;
        std::uint32_t from_index;
        SimHost* to;
        std::uint32_t to_index;
        std::size_t back;  // the wire in the other direction
        Link link;
    };
    struct Pair {
        Dialogue dialogue;  // of the client
        bool crossed = false;
        Application* client = nullptr;
        std::vector<Application*> servers;  // a flow may be accepted twice, when an old SYN comes late
    };
    struct Disturbance {
        enum class Kind : std::uint8_t { kPartition, kPathMtu, kHostMtu } kind;
        std::size_t wire;
        bool both;
        bool on;  // partition begins, or ends
        std::uint32_t mtu = 0;
        bool tells = true;
    };

    // draw.cc
    Plan draw_plan();
    Weather draw_weather(bool harsh);
    stack::StackConfig draw_config();
    void make_hosts();
    void connect_hosts();
    void draw_disturbances();
    void draw_pairs();
    Instant draw_start();

    // world.cc
    void at(Duration from_now, What what, std::size_t index = 0);
    void step();
    void look();
    void do_item(const Item& item);
    void open(std::size_t pair);
    void disturb(const Disturbance& disturbance);
    Application& make_application(const char* who, std::size_t pair, const Dialogue& dialogue);
    void start_acting(Application& application);
    void send_frames();
    void put_on(Wire& wire, Bytes frame);
    void note(const Wire& wire, const Bytes& frame, Link::Fate fate);
    Instant next() const;
    bool all_done() const;

    // checks.cc
    void check_stalls();
    void check_pairs();
    void wind_up();
    void count();

    std::uint64_t seed_;
    Failures failures_;
    Rng rng_;
    Plan plan_;
    std::string traced_;
    std::deque<std::string> transcript_;
    Address client_address_, server_address_;
    std::unique_ptr<SimHost> client_, server_, router_;
    std::vector<SimHost*> hosts_;
    std::deque<Wire> wires_;
    std::vector<Disturbance> disturbances_;
    Instant calm_since_{};  // the last disturbance
    std::priority_queue<Item> agenda_;
    std::uint64_t order_ = 0;
    Instant now_{1h};
    Instant start_{1h};
    bool keep_alive_ = false;
    bool winding_up_ = false;
    std::size_t open_left_ = 0;
    std::size_t alive_ = 0;
    Instant accepts_again_{};  // the accept queue is full until then
    std::vector<Pair> pairs_;
    std::vector<std::unique_ptr<Application>> applications_;
    std::unique_ptr<Datagrams> client_datagrams_, server_datagrams_;
    stack::tcp::Listener* listener_ = nullptr;
    Totals totals_;
};

}  // namespace culvert::sim
