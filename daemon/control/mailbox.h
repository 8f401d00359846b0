// Work for the control thread, from the engines: answers to what it posted, neighbours to be resolved.
#pragma once

#include <sys/eventfd.h>

#include <functional>
#include <mutex>
#include <utility>
#include <vector>

#include "shm/base/check.h"
#include "shm/base/unique_fd.h"

namespace culvert::control {

class Mailbox {
public:
    using Task = std::function<void()>;

    Mailbox() : event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) { CHECK(event_.get() >= 0); }

    /// Any thread; never blocks on the control thread's work.
    void post(Task task) {
        bool first = false;
        {
            const std::lock_guard lock(mutex_);
            first = tasks_.empty();
            tasks_.push_back(std::move(task));
        }
        if (first) (void)::eventfd_write(event_.get(), 1);
    }

    /// Readable when run() has something to do.
    int fd() const { return event_.get(); }

    /// Control thread: runs what has been posted, in order.
    void run() {
        eventfd_t ignored = 0;
        (void)::eventfd_read(event_.get(), &ignored);
        std::vector<Task> tasks;
        {
            const std::lock_guard lock(mutex_);
            tasks.swap(tasks_);
        }
        for (Task& task : tasks) task();
    }

private:
    UniqueFd event_;
    std::mutex mutex_;
    std::vector<Task> tasks_;
};

}  // namespace culvert::control
