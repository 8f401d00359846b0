#include "daemon/tenant/event_signal.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <array>

#include "shm/wakeup.h"

namespace culvert::tenant {

EventSignal::EventSignal() : empty_(::memfd_create("culvert-signal", MFD_CLOEXEC)) {
    if (!empty_ || ::syscall(SYS_io_setup, kDepth, &context_) != 0) context_ = 0;
}

EventSignal::~EventSignal() {
    if (context_ != 0) ::syscall(SYS_io_destroy, context_);
}

void EventSignal::forget() {
    std::array<io_event, kDepth> events;
    timespec at_once{};
    ::syscall(SYS_io_getevents, context_, 0, kDepth, events.data(), &at_once);
    completions_ = 0;
}

void EventSignal::signal(int eventfd) {
    if (context_ == 0) return shm::signal_eventfd(eventfd);
    iocb operation{};
    operation.aio_lio_opcode = IOCB_CMD_PREAD;
    operation.aio_fildes = static_cast<std::uint32_t>(empty_.get());
    operation.aio_flags = IOCB_FLAG_RESFD;
    operation.aio_resfd = static_cast<std::uint32_t>(eventfd);
    iocb* const list = &operation;
    if (++completions_ > kDepth / 2) forget();
    ::syscall(SYS_io_submit, context_, 1, &list);
}

}  // namespace culvert::tenant
