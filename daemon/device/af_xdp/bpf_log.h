// libbpf and libxdp print to stderr unless told otherwise. The daemon reports errors itself, in one line, so what the
// libraries say is kept instead: the last warning goes into the Error of the call that failed.
#pragma once

#include <string>

namespace culvert::device {

/// Silences both libraries (once) and forgets this thread's last warning. Call before a group of library calls.
void collect_bpf_log();
/// The last warning of this thread since collect_bpf_log(), one line, perhaps empty.
std::string last_bpf_warning();

}  // namespace culvert::device
