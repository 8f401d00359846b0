// What happens when the library is loaded: next to nothing. Attaching waits for the first socket().

#include <pthread.h>

#include <atomic>

#include "preload/client.h"
#include "preload/environment.h"
#include "preload/fd_table.h"
#include "preload/inherited.h"
#include "preload/libc.h"
#include "preload/policy.h"
#include "preload/startup.h"

namespace culvert::preload {

void start_once() noexcept {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    ::pthread_once(&once, [] {
        claim_memory();
        read_policy();
        FdTable::instance();
        ::pthread_atfork(Client::before_fork, Client::after_fork_in_parent, Client::after_fork_in_child);
    });
}

namespace {
// Other constructors may call socket() before this one runs: Socket::open calls start_once too.
[[gnu::constructor]] void on_load() {
    remember_environment();
    Client::remember_name();
    start_once();
    find_inherited();
}
}  // namespace

}  // namespace culvert::preload
