// The TCP option parser on arbitrary bytes: it stays inside them, what it accepts keeps its promises, and what it
// accepts can be written and read again.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>

#include "daemon/wire/tcp_options.h"
#include "shm/base/check.h"
#include "tests/fuzz/target.h"

using namespace culvert;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    size = std::min(size, wire::kMaxTcpOptionsLength);
    // A copy of its own on the heap, so that AddressSanitizer sees a read beyond the end.
    const auto copy = std::make_unique<std::byte[]>(size);
    if (size != 0) std::memcpy(copy.get(), data, size);
    const auto options = wire::TcpOptions::parse({copy.get(), size});
    if (!options) {
        CHECK(options.error() == Drop::kTcpOptionMalformed);
        return 0;
    }
    CHECK(options->sack_count <= wire::kMaxSackBlocks);
    if (options->window_scale) CHECK(*options->window_scale <= wire::kMaxWindowScale);

    wire::TcpOptions again = *options;
    again.fast_open_cookie.reset();  // it borrows from the input, and its room depends on the rest
    if (again.timestamps && again.sack_count > wire::max_sack_blocks(true))
        again.sack_count = static_cast<std::uint8_t>(wire::max_sack_blocks(true));
    // A SYN carries no blocks and a later segment no SYN options: only such sets are ever sent.
    if (again.mss || again.window_scale || again.sack_permitted) again.sack_count = 0;
    std::array<std::byte, wire::kMaxTcpOptionsLength> out;
    const std::size_t length = wire::emitted_length(again);
    CHECK(length <= out.size() && length % 4 == 0);
    wire::emit(again, std::span(out).first(length));
    const auto read = wire::TcpOptions::parse(std::span(out).first(length));
    CHECK(read.has_value());
    CHECK(read->timestamps == again.timestamps && read->mss == again.mss);
    CHECK(read->window_scale == again.window_scale && read->sack_permitted == again.sack_permitted);
    CHECK(std::ranges::equal(read->sack(), again.sack()));
    return 0;
}
