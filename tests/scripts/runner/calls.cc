#include "tests/scripts/runner/calls.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cstring>

#include "tests/scripts/runner/constants.h"
#include "tests/scripts/runner/flow.h"

namespace culvert::script {
namespace {

using Kind = Expression::Kind;
using Name = Call::Name;

struct Shape {
    std::string_view name;
    Name call;
    std::size_t arguments;
};
constexpr Shape kShapes[] = {
    {"socket", Name::kSocket, 3},     {"bind", Name::kBind, 3},         {"listen", Name::kListen, 2},
    {"accept", Name::kAccept, 3},     {"accept4", Name::kAccept, 4},    {"connect", Name::kConnect, 3},
    {"read", Name::kReceive, 3},      {"recv", Name::kReceive, 4},      {"recvfrom", Name::kReceive, 6},
    {"recvmsg", Name::kReceive, 3},   {"readv", Name::kReceive, 3},     {"write", Name::kSend, 3},
    {"send", Name::kSend, 4},         {"sendto", Name::kSend, 6},       {"sendmsg", Name::kSend, 3},
    {"writev", Name::kSend, 3},       {"close", Name::kClose, 1},       {"shutdown", Name::kShutdown, 2},
    {"setsockopt", Name::kSetOption, 5}, {"getsockopt", Name::kGetOption, 5}, {"fcntl", Name::kFcntl, 3},
    {"ioctl", Name::kIoctl, 3},       {"poll", Name::kPoll, 3}};

[[noreturn]] void complain(const Expression& at, const std::string& text) { throw Complaint{at.place, text}; }

const Expression* field(const Expression& structure, std::string_view name) {
    for (std::size_t i = 0; i < structure.items.size(); ++i)
        if (i < structure.fields.size() && structure.fields[i] == name) return &structure.items[i];
    return nullptr;
}

template <class T>
Bytes bytes_of(const T& value) {
    Bytes bytes(sizeof value);
    std::memcpy(bytes.data(), &value, sizeof value);
    return bytes;
}

}  // namespace

std::int64_t Calls::integer(const Expression& expression) const {
    switch (expression.kind) {
        case Kind::kNumber: return expression.number;
        case Kind::kName:
            if (const auto value = constant(expression.text)) return *value;
            complain(expression, "nothing is called " + expression.text);
        case Kind::kOr: {
            std::int64_t value = 0;
            for (const Expression& item : expression.items) value |= integer(item);
            return value;
        }
        default: complain(expression, "expected a number or the name of one");
    }
}

ScriptSocket& Calls::socket(const Expression& number) {
    const auto found = sockets_.find(static_cast<int>(integer(number)));
    if (found == sockets_.end()) complain(number, "no call has returned this descriptor");
    return found->second;
}

/// "...", or {sa_family = AF_INET, sin_port = htons(8080), sin_addr = inet_addr("192.0.2.1")}: then the port counts, and
/// the address if it is of the family that the script runs over.
std::optional<Endpoint> Calls::address(const Expression& expression, const Endpoint& usual) const {
    if (expression.kind == Kind::kAnything) return usual;
    if (expression.kind != Kind::kStruct) complain(expression, "expected ... or {sa_family = ..., sin_port = ..., sin_addr = ...}");
    Endpoint endpoint = usual;
    const Expression* port = field(expression, "sin_port");
    if (port == nullptr) port = field(expression, "sin6_port");
    if (port != nullptr) {
        if (port->kind != Kind::kCall || port->text != "htons" || port->items.size() != 1) complain(*port, "expected htons(PORT)");
        endpoint.port = static_cast<Port>(integer(port->items[0]));
    }
    const Expression* host = field(expression, "sin_addr");
    if (host != nullptr) {
        if (host->kind != Kind::kCall || host->items.size() != 1 || host->items[0].kind != Kind::kString)
            complain(*host, "expected inet_addr(\"ADDRESS\")");
        const auto parsed = Address::parse(host->items[0].text);
        if (!parsed) complain(*host, "not an address");
        if (parsed->is_v4() == usual.address.is_v4()) endpoint.address = *parsed;
        else if (parsed->is_unspecified()) endpoint.address = Address::any(usual.address.family());
    }
    return endpoint;
}

Bytes Calls::option_value(int level, int name, const Expression& value) const {
    if (value.kind == Kind::kString) {
        const auto* text = reinterpret_cast<const std::byte*>(value.text.data());
        return {text, text + value.text.size()};
    }
    if (value.kind == Kind::kStruct) {
        if (level == SOL_SOCKET && name == SO_LINGER) {
            const Expression* on = field(value, "onoff");
            const Expression* seconds = field(value, "linger");
            if (on == nullptr || seconds == nullptr) complain(value, "expected {onoff=1, linger=0}");
            return bytes_of(linger{static_cast<int>(integer(*on)), static_cast<int>(integer(*seconds))});
        }
        if (level == SOL_SOCKET && (name == SO_RCVTIMEO || name == SO_SNDTIMEO)) {
            const Expression* seconds = field(value, "tv_sec");
            const Expression* micro = field(value, "tv_usec");
            if (seconds == nullptr || micro == nullptr) complain(value, "expected {tv_sec=1, tv_usec=0}");
            return bytes_of(timeval{static_cast<time_t>(integer(*seconds)), static_cast<suseconds_t>(integer(*micro))});
        }
        complain(value, "this option takes no structure");
    }
    if (value.kind == Kind::kList && value.items.size() == 1) return bytes_of(static_cast<int>(integer(value.items[0])));
    return bytes_of(static_cast<int>(integer(value)));
}

void Calls::prepare_poll(const Syscall& syscall, Call& call) {
    const Expression& list = syscall.arguments[0];
    if (list.kind != Kind::kList) complain(list, "expected [{fd=3, events=POLLIN, revents=POLLIN}]");
    for (const Expression& item : list.items) {
        const Expression* fd = field(item, "fd");
        const Expression* events = field(item, "events");
        if (fd == nullptr || events == nullptr) complain(item, "expected {fd=3, events=POLLIN, revents=POLLIN}");
        call.poll.push_back({.fd = socket(*fd).world_fd, .events = static_cast<short>(integer(*events)), .revents = 0});
    }
    if (integer(syscall.arguments[1]) != static_cast<std::int64_t>(call.poll.size()))
        complain(syscall.arguments[1], "the list has " + std::to_string(call.poll.size()) + " entries");
    call.second = static_cast<int>(integer(syscall.arguments[2]));
}

/// Reads and writes: length, flags, destination. Data are "...": the pattern that both ends know.
void Calls::prepare_transfer(const Syscall& syscall, Call& call) {
    const Expression& buffer = syscall.arguments[1];
    std::size_t flags_at = 3;
    const auto vector_length = [&](const Expression& list) {
        if (list.kind != Kind::kList) complain(list, "expected [{..., LENGTH}]");
        std::size_t total = 0;
        for (const Expression& item : list.items) {
            if (item.kind != Kind::kStruct || item.items.size() != 2) complain(item, "expected {..., LENGTH}");
            total += static_cast<std::size_t>(integer(item.items[1]));
        }
        return total;
    };
    if (syscall.name == "sendmsg" || syscall.name == "recvmsg") {
        if (buffer.kind != Kind::kStruct) complain(buffer, "expected {msg_iov(1)=[{..., LENGTH}], msg_flags=0}");
        const Expression* pieces = field(buffer, "msg_iov");
        if (pieces == nullptr) complain(buffer, "expected msg_iov(1)=[{..., LENGTH}]");
        call.length = vector_length(*pieces);
        for (const char* known : {"msg_control", "msg_controllen"})
            if (field(buffer, known) != nullptr) complain(buffer, std::string(known) + " is not part of this dialect");
        flags_at = 2;
    } else if (syscall.name == "readv" || syscall.name == "writev") {
        call.length = vector_length(buffer);
        flags_at = 9;
    } else {
        if (buffer.kind != Kind::kAnything) complain(buffer, "expected ...: the bytes are the runner's own");
        call.length = static_cast<std::size_t>(integer(syscall.arguments[2]));
    }
    if (call.length > 16 << 20) complain(buffer, "at most 16 MiB in one call");
    if (flags_at < syscall.arguments.size()) call.first = static_cast<int>(integer(syscall.arguments[flags_at]));
    if (call.name != Name::kSend) return;
    if (syscall.name == "sendto" && syscall.arguments[4].kind != Kind::kName) call.address = address(syscall.arguments[4], setup_.remote);
    const ScriptSocket& to = socket(syscall.arguments[0]);
    call.data.resize(call.length);
    for (std::size_t i = 0; i < call.length; ++i)
        call.data[i] = pattern((to.stream ? to.write_position : 1) + static_cast<std::uint32_t>(i));
    if ((call.first & MSG_OOB) != 0) ignores_payload = true;
}

Call Calls::prepare(const Syscall& syscall) {
    const Shape* shape = nullptr;
    for (const Shape& known : kShapes)
        if (known.name == syscall.name) shape = &known;
    const auto fail = [&](const std::string& text) {
        throw Complaint{syscall.arguments.empty() ? syscall.result.place : syscall.arguments[0].place, text};
    };
    if (shape == nullptr) fail("no call of this dialect is named " + syscall.name);
    const bool short_fcntl = shape->call == Name::kFcntl && syscall.arguments.size() == 2;
    if (syscall.arguments.size() != shape->arguments && !short_fcntl)
        fail(syscall.name + " takes " + std::to_string(shape->arguments) + " arguments, not " + std::to_string(syscall.arguments.size()));
    Call call{.name = shape->call};
    const auto& arguments = syscall.arguments;
    if (call.name != Name::kSocket && call.name != Name::kPoll) call.fd = socket(arguments[0]).world_fd;
    const auto at = [&](std::size_t index) { return static_cast<int>(integer(arguments[index])); };
    switch (call.name) {
        case Name::kSocket:
            call.first = at(1);
            call.second = at(2);
            break;
        case Name::kBind: call.address = address(arguments[1], setup_.local); break;
        case Name::kConnect:
            call.address = address(arguments[1], setup_.remote);
            subject_ = call.fd;
            break;
        case Name::kListen:
        case Name::kShutdown: call.first = at(1); break;
        case Name::kAccept: call.second = syscall.name == "accept4" ? at(3) : 0; break;
        case Name::kSetOption:
            call.first = at(1);
            call.second = at(2);
            call.data = option_value(call.first, call.second, arguments[3]);
            break;
        case Name::kGetOption:
            call.first = at(1);
            call.second = at(2);
            break;
        case Name::kFcntl:
            call.first = at(1);
            call.second = arguments.size() == 2 || arguments[2].kind == Kind::kAnything ? 0 : at(2);
            break;
        case Name::kIoctl: call.first = at(1); break;
        case Name::kPoll: prepare_poll(syscall, call); break;
        case Name::kSend:
        case Name::kReceive: prepare_transfer(syscall, call); break;
        case Name::kClose: break;
    }
    return call;
}

std::string Calls::describe(const Outcome& outcome) {
    return std::to_string(outcome.value) + (outcome.error != 0 ? " " + errno_name(outcome.error) : "");
}

std::optional<std::string> Calls::check(const Syscall& syscall, const Call& call, const Outcome& outcome) {
    const auto instead = [&] { return "it returned " + describe(outcome); };
    const bool names_descriptor = call.name == Name::kSocket || call.name == Name::kAccept;
    if (syscall.result.kind != Kind::kAnything) {
        const std::int64_t wanted = integer(syscall.result);
        if (names_descriptor && wanted >= 0 ? outcome.value < 0 : outcome.value != wanted) return instead();
    }
    const std::string error = outcome.value < 0 ? errno_name(outcome.error) : "";
    if (error != syscall.error && !(syscall.error == "EWOULDBLOCK" && error == "EAGAIN")) return instead();
    if (outcome.value < 0) return std::nullopt;
    if (names_descriptor) learn_descriptor(syscall, call, outcome);
    if (call.name == Name::kClose) sockets_.erase(static_cast<int>(integer(syscall.arguments[0])));
    if (call.name == Name::kSend) socket(syscall.arguments[0]).write_position += static_cast<std::uint32_t>(outcome.value);
    if (call.name == Name::kReceive) return check_received(socket(syscall.arguments[0]), call, outcome);
    if (call.name == Name::kGetOption) return check_option(syscall, call, outcome);
    if (call.name == Name::kPoll) return check_poll(syscall, outcome);
    if (call.name == Name::kIoctl && syscall.arguments[2].kind == Kind::kList) {
        if (syscall.arguments[2].items.size() != 1) complain(syscall.arguments[2], "expected [NUMBER]");
        const std::int64_t wanted = integer(syscall.arguments[2].items[0]);
        if (outcome.number != wanted) return "it gave " + std::to_string(outcome.number) + ", not " + std::to_string(wanted);
    }
    return std::nullopt;
}

void Calls::learn_descriptor(const Syscall& syscall, const Call& call, const Outcome& outcome) {
    if (syscall.result.kind == Kind::kAnything) complain(syscall.result, "a descriptor needs a number: = 3");
    const bool stream = call.name == Name::kAccept || (call.first & 0xf) == SOCK_STREAM;
    sockets_[static_cast<int>(integer(syscall.result))] = {.world_fd = static_cast<int>(outcome.value), .stream = stream};
    if (call.name == Name::kAccept || !subject_) subject_ = static_cast<int>(outcome.value);
}

std::optional<std::string> Calls::check_received(ScriptSocket& from, const Call& call, const Outcome& outcome) {
    const std::uint32_t first = from.stream ? from.read_position : 1;
    if ((call.first & MSG_PEEK) == 0) from.read_position += static_cast<std::uint32_t>(outcome.value);
    if (ignores_payload || (call.first & MSG_OOB) != 0) return std::nullopt;
    for (std::size_t i = 0; i < outcome.data.size(); ++i)
        if (outcome.data[i] != pattern(first + static_cast<std::uint32_t>(i)))
            return "byte " + std::to_string(i) + " of what was read is not what was sent";
    return std::nullopt;
}

std::optional<std::string> Calls::check_option(const Syscall& syscall, const Call& call, const Outcome& outcome) const {
    const Expression& wanted = syscall.arguments[3];
    if (wanted.kind == Kind::kAnything) return std::nullopt;
    const Bytes bytes = option_value(call.first, call.second, wanted);
    if (wanted.kind == Kind::kList && outcome.data.size() == sizeof(int)) {
        int is = 0, wants = 0;
        std::memcpy(&is, outcome.data.data(), sizeof is);
        std::memcpy(&wants, bytes.data(), sizeof wants);
        if (is != wants) return "the option is " + std::to_string(is) + ", not " + std::to_string(wants);
        return std::nullopt;
    }
    const std::size_t common = std::min(bytes.size(), outcome.data.size());
    if (common == 0 || std::memcmp(bytes.data(), outcome.data.data(), common) != 0) return "the option has another value";
    return std::nullopt;
}

std::optional<std::string> Calls::check_poll(const Syscall& syscall, const Outcome& outcome) const {
    const auto& items = syscall.arguments[0].items;
    for (std::size_t i = 0; i < items.size(); ++i) {
        const Expression* wanted = field(items[i], "revents");
        if (wanted == nullptr) continue;
        const std::int64_t is = outcome.poll.at(i).revents;
        if (is != integer(*wanted)) return "revents is " + std::to_string(is) + ", not " + std::to_string(integer(*wanted));
    }
    return std::nullopt;
}

}  // namespace culvert::script
