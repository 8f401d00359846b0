// The parser of packet scripts on arbitrary text, and the evaluator of assertions: they end, stay inside the text, say where
// a mistake is, and what is accepted keeps the promises of script.h.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "shm/base/check.h"
#include "tests/fuzz/target.h"
#include "tests/scripts/runner/assertion.h"
#include "tests/scripts/runner/parse.h"

using namespace culvert;

namespace {

void check_packet(const script::Packet& packet) {
    if (const auto* tcp = std::get_if<script::TcpPacket>(&packet.content)) {
        CHECK(tcp->last - tcp->first == tcp->length && tcp->length <= 65535);
        CHECK(tcp->ack.has_value() == ((tcp->flags & 0x10) != 0));
        CHECK(!packet.inbound || !tcp->any_options);
        CHECK(!tcp->any_options || tcp->options.empty());
        for (const script::Option& option : tcp->options)
            if (const auto* sack = std::get_if<script::Sack>(&option)) CHECK(!sack->blocks.empty() && sack->blocks.size() <= 4);
    }
    CHECK(packet.inbound || !std::holds_alternative<script::IcmpPacket>(packet.content));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    // A copy of its own on the heap, so that AddressSanitizer sees a read beyond the end.
    const auto copy = std::make_unique<char[]>(size);
    std::copy_n(data, size, copy.get());
    const std::string_view text(copy.get(), size);
    const auto lines = static_cast<std::size_t>(std::ranges::count(text, '\n'));
    const auto parsed = script::parse(text);
    if (!parsed) {
        CHECK(!parsed.error().text.empty());
        CHECK(parsed.error().place.line >= 1 && parsed.error().place.line <= lines + 1);
        CHECK(parsed.error().place.column >= 1);
        return 0;
    }
    CHECK(!parsed->events.empty());
    for (const script::Event& event : parsed->events) {
        CHECK(!event.source.empty() && event.place.line <= lines + 1);
        CHECK(event.when.earliest <= event.when.latest && event.when.earliest.count() >= 0);
        if (const auto* packet = std::get_if<script::Packet>(&event.what)) check_packet(*packet);
        if (const auto* assertion = std::get_if<script::Assertion>(&event.what))
            script::evaluate(assertion->text, [](std::string_view name) {
                return name.size() > 4 ? std::optional<std::int64_t>(static_cast<std::int64_t>(name.size())) : std::nullopt;
            });
    }
    return 0;
}
