// From a call as the script writes it to one that a world can make, and from what came back to a verdict.
#pragma once

#include <expected>
#include <map>
#include <optional>
#include <string>

#include "tests/scripts/runner/world.h"

namespace culvert::script {

/// A socket of the script: its number there, the world's number, and how far its streams have been read and written.
struct ScriptSocket {
    int world_fd = -1;
    bool stream = true;
    std::uint32_t read_position = 1;
    std::uint32_t write_position = 1;
};

class Calls {
public:
    explicit Calls(const Setup& setup) : setup_(setup) {}

    /// Throws Complaint when the script asks for what this dialect has not.
    Call prepare(const Syscall& syscall);
    /// What is wrong with the outcome; nothing if it is what the script expects. Learns descriptors.
    std::optional<std::string> check(const Syscall& syscall, const Call& call, const Outcome& outcome);
    /// The descriptor that assertions are about: the one that was connected or accepted last.
    std::optional<int> subject() const { return subject_; }
    bool ignores_payload = false;

    static std::string describe(const Outcome& outcome);

private:
    ScriptSocket& socket(const Expression& number);
    std::int64_t integer(const Expression& expression) const;
    std::optional<Endpoint> address(const Expression& expression, const Endpoint& usual) const;
    Bytes option_value(int level, int name, const Expression& value) const;
    void prepare_poll(const Syscall& syscall, Call& call);
    void prepare_transfer(const Syscall& syscall, Call& call);
    std::optional<std::string> check_option(const Syscall& syscall, const Call& call, const Outcome& outcome) const;
    std::optional<std::string> check_poll(const Syscall& syscall, const Outcome& outcome) const;
    std::optional<std::string> check_received(ScriptSocket& from, const Call& call, const Outcome& outcome);
    void learn_descriptor(const Syscall& syscall, const Call& call, const Outcome& outcome);

    const Setup& setup_;
    std::map<int, ScriptSocket> sockets_;  // by the script's number
    std::optional<int> subject_;
};

}  // namespace culvert::script
