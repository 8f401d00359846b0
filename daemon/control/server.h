// The control thread: one io_uring over the listening socket, its connections, netlink, signals, a timer and the mailbox.
//
//   listening socket --accept--> Connection --first packet--> '{': AdminService   else: AttachService
//   netlink          --poll----> KernelFeed
//   signalfd         --read----> TERM, INT: stop   HUP: reload
//   timerfd          --read----> systemd watchdog, finished kernel flows
//   mailbox          --read----> answers of the engine
#pragma once

#include <deque>
#include <functional>
#include <memory>

#include "daemon/control/admin.h"
#include "daemon/control/attach.h"
#include "daemon/control/config.h"
#include "daemon/control/event_loop.h"
#include "daemon/control/kernel_feed.h"
#include "daemon/control/listening_socket.h"
#include "daemon/control/mailbox.h"
#include "daemon/control/policy.h"
#include "daemon/control/steering.h"

namespace culvert::control {

class Server {
public:
    /// What the server works with; all outlive it.
    struct Parts {
        EventLoop& loop;
        Mailbox& mailbox;
        engine::Fleet& engines;
        NetlinkMirror& mirror;
        KernelFeed& feed;
        Steering& steering;
        std::vector<InterfaceReport> interfaces;
        /// The configuration as it is now, for SIGHUP.
        std::function<Result<Config>()> reload;
        /// Puts the rules of a new configuration in force; on error the old ones stay where they could not be changed.
        std::function<Result<void>(const FilterConfig&)> set_filter;
        StandInMaker* stand_ins = nullptr;  // null: no connection can leave its program
    };

    /// Blocks SIGTERM, SIGINT and SIGHUP in the calling thread and takes them as events from then on: call it before other
    /// threads are made. Errors: no signalfd or timerfd.
    static Result<std::unique_ptr<Server>> create(Parts parts, const Config& config, ListeningSocket socket, Policy policy);

    /// From now on programs and administrators may come; run() must follow at once. Errors: ListeningSocket::listen.
    Result<void> listen() { return socket_.listen(); }
    /// Serves until SIGTERM, SIGINT or stop().
    void run();
    /// By a task in the mailbox.
    void stop() { parts_.loop.stop(); }

private:
    Server(Parts parts, const Config& config, ListeningSocket socket, Policy policy);
    void accept_next();
    void accepted(int result);
    void first_packet(Connection& connection, Packet packet);
    void watch_mailbox();
    void watch_netlink();
    void read_signal();
    void read_timer();
    void reload();
    void close_silent();
    std::vector<device::Statistic> numbers() const;

    Parts parts_;
    Config config_;
    ListeningSocket socket_;
    Policy policy_;
    AttachService attach_;
    AdminService admin_;
    UniqueFd signals_;
    UniqueFd timer_;
    std::array<std::byte, 128> signal_buffer_{};  // one signalfd_siginfo
    std::array<std::byte, 8> timer_buffer_{};
    /// Whom nothing has been heard of, and since which tick; eldest first.
    std::deque<std::pair<std::weak_ptr<Connection>, std::uint32_t>> silent_;
    std::uint64_t silent_closed_ = 0;
    std::uint64_t denied_ = 0;
    std::uint64_t connections_ = 0;
    std::uint32_t ticks_ = 0;
    bool accept_later_ = false;
    bool watchdog_;  // systemd wants to hear that we live
    bool watchdog_asked_ = false;  // ... and the engines have not all answered yet
};

}  // namespace culvert::control
