// A place in the script's text, and the small steps that every part of the parser takes from there.
// Inside the parser a mistake is thrown as a Complaint; parse() catches it.
#pragma once

#include <cctype>
#include <charconv>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "tests/scripts/runner/script.h"

namespace culvert::script {

class Cursor {
public:
    explicit Cursor(std::string_view text) : text_(text) {}

    bool at_end() const { return at_ >= text_.size(); }
    char peek(std::size_t ahead = 0) const { return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0'; }
    Place place() const { return {line_, static_cast<std::uint32_t>(at_ - line_start_ + 1)}; }
    std::size_t offset() const { return at_; }
    std::string_view between(std::size_t first, std::size_t last) const { return text_.substr(first, last - first); }

    [[noreturn]] void complain(const std::string& text) const { throw Complaint{place(), text}; }
    [[noreturn]] void expected(const std::string& what) const {
        std::string found = "the end of the script";
        if (!at_end()) found = peek() == '\n' ? "the end of the line" : "'" + std::string(word_here()) + "'";
        complain("expected " + what + ", found " + found);
    }

    /// Takes characters: they belong to what is being read.
    void advance(std::size_t count = 1) {
        step(count);
        taken_ = at_;
    }
    /// Behind the last character taken, before space and comments that were skipped since.
    std::size_t taken() const { return taken_; }
    /// Only space and comments stand between what was taken last and here, and at least one line end or nothing more.
    bool on_new_line() const { return at_end() || text_.substr(taken_, at_ - taken_).find('\n') != std::string_view::npos; }
    /// Space and comments, over line ends.
    void skip_space() {
        for (;;) {
            while (!at_end() && std::isspace(static_cast<unsigned char>(peek()))) step();
            if (peek() == '#' || (peek() == '/' && peek(1) == '/')) {
                while (!at_end() && peek() != '\n') step();
            } else if (peek() == '/' && peek(1) == '*') {
                const Place start = place();
                step(2);
                while (!at_end() && !(peek() == '*' && peek(1) == '/')) step();
                if (at_end()) throw Complaint{start, "a comment that does not end"};
                step(2);
            } else {
                return;
            }
        }
    }
    /// Takes `token` if it stands here (after space).
    bool accept(std::string_view token) {
        skip_space();
        if (text_.substr(at_, token.size()) != token) return false;
        advance(token.size());
        return true;
    }
    /// The same for a word, which must end there.
    bool accept_word(std::string_view word) {
        skip_space();
        if (text_.substr(at_, word.size()) != word || is_word(peek(word.size()))) return false;
        advance(word.size());
        return true;
    }
    void require(std::string_view token) {
        if (!accept(token)) expected("'" + std::string(token) + "'");
    }
    /// A name: letters, digits and _, not beginning with a digit.
    std::string name(const char* what) {
        skip_space();
        if (!is_word(peek()) || std::isdigit(static_cast<unsigned char>(peek()))) expected(what);
        const std::size_t first = at_;
        while (is_word(peek())) advance();
        return std::string(between(first, at_));
    }
    /// Decimal, 0x hexadecimal or 0 octal.
    std::uint64_t number(const char* what, std::uint64_t most) {
        skip_space();
        if (!std::isdigit(static_cast<unsigned char>(peek()))) expected(what);
        int base = 10;
        if (peek() == '0' && (peek(1) == 'x' || peek(1) == 'X')) {
            base = 16;
            advance(2);
        } else if (peek() == '0' && std::isdigit(static_cast<unsigned char>(peek(1)))) {
            base = 8;
        }
        std::uint64_t value = 0;
        const char* const first = text_.data() + at_;
        const auto [end, error] = std::from_chars(first, text_.data() + text_.size(), value, base);
        if (end == first) expected(what);
        if (error != std::errc() || value > most)
            complain("the number is too large: at most " + std::to_string(most));
        advance(static_cast<std::size_t>(end - first));
        return value;
    }
    static bool is_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }

private:
    void step(std::size_t count = 1) {
        for (; count > 0 && !at_end(); --count) {
            if (text_[at_] == '\n') {
                ++line_;
                line_start_ = at_ + 1;
            }
            ++at_;
        }
    }
    std::string_view word_here() const {
        std::size_t end = at_;
        while (end < text_.size() && is_word(text_[end]) && end - at_ < 40) ++end;
        return between(at_, end == at_ ? at_ + 1 : end);
    }

    std::string_view text_;
    std::size_t at_ = 0;
    std::size_t taken_ = 0;
    std::size_t line_start_ = 0;
    std::uint32_t line_ = 1;
};

/// parse_packet.cc: what follows the time, from < or > on.
Packet parse_packet(Cursor& cursor);

}  // namespace culvert::script
