// All engines of a daemon, as the control thread sees them: made together, told the same, asked together.
//
// With one engine there is no exchange and nothing is shared. With several each has its own stack, devices, timers,
// counters and tenants; what they have in common is in exchange.h.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <type_traits>
#include <vector>

#include "daemon/engine/engine.h"

namespace culvert::engine {

class Fleet {
public:
    /// One engine for each entry of `configs`, at most kMaxEngines; all have the same StackConfig::secret. Resolver and
    /// ports are called by all engines' threads. Throws std::system_error (startup only).
    Fleet(const std::vector<EngineConfig>& configs, stack::NeighborResolver& resolver, stack::PortOwner& ports);

    std::uint32_t size() const { return static_cast<std::uint32_t>(engines_.size()); }
    Engine& operator[](std::uint32_t index) { return *engines_[index]; }
    auto begin() const { return engines_.begin(); }
    auto end() const { return engines_.end(); }

    /// The same command on each engine's thread.
    void post_all(const std::function<void(Engine&)>& command) {
        for (const auto& engine : engines_) engine->post(command);
    }
    /// Asks every engine, each on its own thread; `answered` gets the answers in the order of the engines, on the thread of
    /// the engine that was last.
    template <class Answer>
    void ask_all(std::function<Answer(Engine&)> question, std::function<void(std::vector<Answer>)> answered) {
        static_assert(!std::is_same_v<Answer, bool>, "neighbours in a vector<bool> share a byte");
        struct State {
            std::vector<Answer> answers;
            std::atomic<std::uint32_t> left;
        };
        const auto state = std::make_shared<State>();
        state->answers.resize(size());
        state->left = size();
        for (std::uint32_t i = 0; i < size(); ++i)
            engines_[i]->post([state, i, question, answered](Engine& engine) {
                state->answers[i] = question(engine);
                if (state->left.fetch_sub(1, std::memory_order_acq_rel) == 1) answered(std::move(state->answers));
            });
    }

    /// `act` on every engine's thread; then `done` on the thread of the one that was last.
    void all_have(std::function<void(Engine&)> act, std::function<void()> done) {
        ask_all<int>([act = std::move(act)](Engine& engine) { return act(engine), 0; },
                     [done = std::move(done)](const std::vector<int>&) { done(); });
    }

private:
    std::unique_ptr<Exchange> exchange_;  // outlives the engines
    std::vector<std::unique_ptr<Engine>> engines_;
};

}  // namespace culvert::engine
