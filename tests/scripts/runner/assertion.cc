#include "tests/scripts/runner/assertion.h"

#include <set>

#include "tests/scripts/runner/cursor.h"

namespace culvert::script {
namespace {

constexpr unsigned kMaxDepth = 64;

/// Recursive descent, one function a level of precedence; computes as it reads. Numbers are 64 bits, and wrap.
class Evaluator {
public:
    Evaluator(std::string_view text, const Lookup& lookup) : cursor_(text), lookup_(lookup) {}

    std::optional<std::string> run() {
        for (;;) {
            while (std::isspace(static_cast<unsigned char>(cursor_.peek())) || cursor_.peek() == ';') cursor_.advance();
            if (cursor_.at_end()) return std::nullopt;
            if (cursor_.accept_word("print")) {
                while (!cursor_.at_end() && cursor_.peek() != '\n') cursor_.advance();
                continue;
            }
            if (!cursor_.accept_word("assert")) cursor_.expected("assert or print");
            values_.clear();
            const std::size_t first = cursor_.offset();
            const bool holds = either() != 0;
            const std::string said(cursor_.between(first, cursor_.offset()));
            if (cursor_.accept(",")) either();
            if (!holds) {
                std::string text = "does not hold:" + said;
                for (const std::string& value : values_) text += "; " + value;
                return text;
            }
        }
    }

private:
    struct Deeper {
        explicit Deeper(Evaluator& self) : self_(self) {
            if (++self.depth_ > kMaxDepth) self.cursor_.complain("nested too deep");
        }
        ~Deeper() { --self_.depth_; }
        Evaluator& self_;
    };
    static std::int64_t wrap(std::uint64_t value) { return static_cast<std::int64_t>(value); }
    static std::uint64_t u(std::int64_t value) { return static_cast<std::uint64_t>(value); }

    std::int64_t either() {
        const Deeper deeper(*this);
        std::int64_t value = both();
        while (cursor_.accept_word("or")) {
            const std::int64_t other = both();
            value = value != 0 || other != 0;
        }
        return value;
    }
    std::int64_t both() {
        std::int64_t value = negation();
        while (cursor_.accept_word("and")) {
            const std::int64_t other = negation();
            value = value != 0 && other != 0;
        }
        return value;
    }
    std::int64_t negation() {
        const Deeper deeper(*this);
        return cursor_.accept_word("not") ? negation() == 0 : comparison();
    }
    /// As in Python, a < b < c means a < b and b < c.
    std::int64_t comparison() {
        std::int64_t left = bits();
        bool compared = false, holds = true;
        for (;;) {
            const auto take = [&](auto compare) {
                const std::int64_t right = bits();
                holds = holds && compare(left, right);
                left = right;
                compared = true;
            };
            if (cursor_.accept("==")) take(std::equal_to<>());
            else if (cursor_.accept("!=")) take(std::not_equal_to<>());
            else if (cursor_.accept("<=")) take(std::less_equal<>());
            else if (cursor_.accept(">=")) take(std::greater_equal<>());
            else if (cursor_.accept("<")) take(std::less<>());
            else if (cursor_.accept(">")) take(std::greater<>());
            else return compared ? holds : left;
        }
    }
    std::int64_t bits() {
        std::int64_t value = sum();
        for (;;) {
            if (cursor_.accept("&")) value &= sum();
            else if (cursor_.accept("|")) value |= sum();
            else return value;
        }
    }
    std::int64_t sum() {
        std::int64_t value = product();
        for (;;) {
            if (cursor_.accept("+")) value = wrap(u(value) + u(product()));
            else if (cursor_.accept("-")) value = wrap(u(value) - u(product()));
            else return value;
        }
    }
    std::int64_t product() {
        std::int64_t value = primary();
        for (;;) {
            if (cursor_.accept("*")) {
                value = wrap(u(value) * u(primary()));
            } else if (cursor_.accept("//") || cursor_.accept("/")) {
                value = value / divisor();
            } else if (cursor_.accept("%")) {
                value = value % divisor();
            } else {
                return value;
            }
        }
    }
    std::int64_t divisor() {
        const std::int64_t value = primary();
        if (value == 0 || value == -1) cursor_.complain("division by zero or minus one");
        return value;
    }
    std::int64_t primary() {
        const Deeper deeper(*this);
        if (cursor_.accept("(")) {
            const std::int64_t value = either();
            cursor_.require(")");
            return value;
        }
        if (cursor_.accept("-")) return wrap(0 - u(primary()));
        cursor_.skip_space();
        if (std::isdigit(static_cast<unsigned char>(cursor_.peek())))
            return static_cast<std::int64_t>(cursor_.number("a number", INT64_MAX));
        const std::string name = cursor_.name("a name or a number");
        const auto value = lookup_(name);
        if (!value) cursor_.complain("nothing here is called " + name);
        values_.insert(name + " is " + std::to_string(*value));
        return *value;
    }

    Cursor cursor_;
    const Lookup& lookup_;
    std::set<std::string> values_;
    unsigned depth_ = 0;
};

}  // namespace

std::optional<std::string> evaluate(std::string_view text, const Lookup& lookup) {
    try {
        return Evaluator(text, lookup).run();
    } catch (const Complaint& complaint) {
        return "cannot be read (character " + std::to_string(complaint.place.column) + "): " + complaint.text;
    }
}

}  // namespace culvert::script
