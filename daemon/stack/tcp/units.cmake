# The pure parts of TCP; paths relative to daemon/stack. They need libsodium (isn.cc), culvert_base and culvert_wire.
set(CULVERT_TCP_UNITS
  tcp/rtt_estimator.cc
  tcp/sack_scoreboard.cc
  tcp/loss_recovery.cc
  tcp/reassembler.cc
  tcp/sip_hash.cc
  tcp/isn.cc
  tcp/syn_cookie.cc
  tcp/congestion/controller.cc
  tcp/congestion/new_reno.cc
  tcp/congestion/hystart.cc
  tcp/congestion/cubic.cc
  tcp/congestion/dctcp.cc
  tcp/congestion/bbr.cc
  tcp/congestion/bbr_states.cc)
