#include "daemon/stack/tcp/shared.h"

#include <algorithm>

namespace culvert::stack::tcp {
Shared::Shared(const StackConfig& stack_config, IpOutput& ip_output, PortOwner& port_owner, Counters& engine_counters,
               Rng& engine_rng, std::size_t connection_bytes, std::size_t sending_bytes,
               Peers* other_engines)
    : config(stack_config),
      peers(other_engines),
      ip(ip_output),
      counters(engine_counters),
      rng(engine_rng),
      output(ip_output, engine_counters),
      hash(config.secret),
      flows(config.max_connections + config.max_half_open + config.max_time_wait, other_engines),
      ports(port_owner),
      connections(connection_bytes, config.max_connections),
      senders(sending_bytes, config.max_connections),
      options(config.max_connections + 1),
      // One connection may hold a quarter of the memory for out-of-order data.
      reassembly(config.reassembly_chunks, std::max(config.reassembly_chunks / 4, 8u)),
      sacks(std::max(config.max_connections / 8, 64u)),
      bbr_models(config.max_bbr, engine_rng),
      // Every connection with something in flight needs one piece, one with much in flight up to 37. Untouched, they
      // cost address space only.
      flights(std::max(config.max_connections, 1024u)),
      mtu_searches(config.max_mtu_searches),
      isn(sip_key(config.secret)),
      syn_cookies(sip_key(config.secret)),
      fast_open_cookies(sip_key(config.secret)),
      fast_open_cache(sip_key(config.secret)),
      time_wait(config.max_time_wait, config.time_wait, flows, wheel, output, engine_counters, kTimeWaitTimer) {
    while ((config.max_receive_buffer >> receive_scale_) > 0xffff && receive_scale_ < wire::kMaxWindowScale)
        ++receive_scale_;
}

}  // namespace culvert::stack::tcp
