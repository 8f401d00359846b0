// Lines: settings (--mtu=1500), then events, each with its time. Calls and their arguments; comments that say something.
#include "tests/scripts/runner/parse.h"

#include "tests/scripts/runner/cursor.h"

namespace culvert::script {
namespace {

constexpr std::size_t kMaxText = 1 << 20;
constexpr unsigned kMaxDepth = 32;
constexpr std::uint64_t kMaxSeconds = 1'000'000;

/// 1, 0.25, .5 seconds
Duration parse_seconds(Cursor& cursor) {
    cursor.skip_space();
    std::int64_t nanoseconds = 0;
    bool any = false;
    if (std::isdigit(static_cast<unsigned char>(cursor.peek()))) {
        std::uint64_t seconds = 0;
        while (std::isdigit(static_cast<unsigned char>(cursor.peek()))) {
            seconds = seconds * 10 + static_cast<std::uint64_t>(cursor.peek() - '0');
            if (seconds > kMaxSeconds) cursor.complain("a time beyond " + std::to_string(kMaxSeconds) + " seconds");
            cursor.advance();
        }
        nanoseconds = static_cast<std::int64_t>(seconds) * 1'000'000'000;
        any = true;
    }
    if (cursor.peek() == '.' && std::isdigit(static_cast<unsigned char>(cursor.peek(1)))) {
        cursor.advance();
        std::int64_t unit = 100'000'000;
        while (std::isdigit(static_cast<unsigned char>(cursor.peek()))) {
            nanoseconds += (cursor.peek() - '0') * unit;
            unit /= 10;
            cursor.advance();
        }
        any = true;
    }
    if (!any) cursor.expected("a time in seconds");
    return Duration(nanoseconds);
}

When parse_when(Cursor& cursor) {
    When when;
    if (cursor.accept("*")) {
        when.base = When::Base::kAnyTime;
        return when;
    }
    const bool relative = cursor.accept("+");
    when.base = relative ? When::Base::kPrevious : When::Base::kStart;
    when.earliest = when.latest = parse_seconds(cursor);
    if (cursor.peek() == '~') {
        cursor.advance();
        if (relative) cursor.accept("+");
        when.latest = parse_seconds(cursor);
    } else if (cursor.peek() == '.' && cursor.peek(1) == '.' && cursor.peek(2) == '.') {
        cursor.advance(3);
        if (relative) cursor.accept("+");
        when.ends = parse_seconds(cursor);
        if (*when.ends < when.earliest) cursor.complain("the call ends before it begins");
    }
    if (when.latest < when.earliest) cursor.complain("the range of times ends before it begins");
    return when;
}

Expression parse_expression(Cursor& cursor, unsigned depth);

void parse_items(Cursor& cursor, const char* close, Expression& into, unsigned depth) {
    if (cursor.accept(close)) return;
    do into.items.push_back(parse_expression(cursor, depth + 1));
    while (cursor.accept(","));
    cursor.require(close);
}

std::string parse_string(Cursor& cursor) {
    std::string text;
    while (cursor.peek() != '"') {
        if (cursor.at_end() || cursor.peek() == '\n') cursor.expected("the closing \"");
        if (cursor.peek() == '\\') {
            cursor.advance();
            const char escaped = cursor.peek();
            text += escaped == 'n' ? '\n' : escaped == 't' ? '\t' : escaped == '0' ? '\0' : escaped;
        } else {
            text += cursor.peek();
        }
        cursor.advance();
    }
    cursor.advance();
    return text;
}

/// {a=1, b=2}; also {1, 2} without names.
void parse_struct(Cursor& cursor, Expression& into, unsigned depth) {
    into.kind = Expression::Kind::kStruct;
    if (cursor.accept("}")) return;
    do {
        Expression first = parse_expression(cursor, depth + 1);
        if (cursor.accept("=")) {
            if (first.kind != Expression::Kind::kName && first.kind != Expression::Kind::kCall)
                throw Complaint{first.place, "expected the name of a field before '='"};
            into.fields.push_back(first.text);
            into.items.push_back(parse_expression(cursor, depth + 1));
        } else {
            into.fields.emplace_back();
            into.items.push_back(std::move(first));
        }
    } while (cursor.accept(","));
    cursor.require("}");
}

Expression parse_primary(Cursor& cursor, unsigned depth) {
    if (depth > kMaxDepth) cursor.complain("nested too deep");
    cursor.skip_space();
    Expression expression;
    expression.place = cursor.place();
    if (cursor.accept("...")) return expression;
    if (cursor.accept("[")) {
        expression.kind = Expression::Kind::kList;
        parse_items(cursor, "]", expression, depth);
    } else if (cursor.accept("{")) {
        parse_struct(cursor, expression, depth);
    } else if (cursor.accept("\"")) {
        expression.kind = Expression::Kind::kString;
        expression.text = parse_string(cursor);
    } else if (cursor.peek() == '-' || std::isdigit(static_cast<unsigned char>(cursor.peek()))) {
        const bool negative = cursor.accept("-");
        expression.kind = Expression::Kind::kNumber;
        expression.number = static_cast<std::int64_t>(cursor.number("a number", INT64_MAX));
        if (negative) expression.number = -expression.number;
    } else {
        expression.text = cursor.name("a value");
        expression.kind = Expression::Kind::kName;
        if (cursor.accept("(")) {
            expression.kind = Expression::Kind::kCall;
            parse_items(cursor, ")", expression, depth);
        }
    }
    return expression;
}

Expression parse_expression(Cursor& cursor, unsigned depth) {
    Expression first = parse_primary(cursor, depth);
    cursor.skip_space();
    if (cursor.peek() != '|') return first;
    Expression whole;
    whole.kind = Expression::Kind::kOr;
    whole.place = first.place;
    whole.items.push_back(std::move(first));
    while (cursor.accept("|")) whole.items.push_back(parse_primary(cursor, depth + 1));
    return whole;
}

Syscall parse_syscall(Cursor& cursor) {
    Syscall call;
    call.name = cursor.name("a packet (< or >), a call, a `command` or %{ an assertion }%");
    cursor.require("(");
    Expression arguments;
    parse_items(cursor, ")", arguments, 0);
    call.arguments = std::move(arguments.items);
    cursor.require("=");
    call.result = parse_expression(cursor, 0);
    // An errno stands on the same line, and perhaps a note in parentheses.
    if (cursor.peek() == 'E' && !cursor.on_new_line()) call.error = cursor.name("an errno");
    cursor.skip_space();
    if (cursor.peek() == '(' && !cursor.on_new_line()) {
        while (cursor.peek() != ')') {
            if (cursor.at_end() || cursor.peek() == '\n') cursor.expected("')'");
            cursor.advance();
        }
        cursor.advance();
    }
    return call;
}

std::string parse_until(Cursor& cursor, std::string_view close, const char* what) {
    const Place start = cursor.place();
    const std::size_t first = cursor.offset();
    while (!cursor.at_end()) {
        if (cursor.peek() == close[0] && (close.size() == 1 || cursor.peek(1) == close[1])) {
            std::string text(cursor.between(first, cursor.offset()));
            cursor.advance(close.size());
            return text;
        }
        cursor.advance();
    }
    throw Complaint{start, std::string(what) + " that does not end"};
}

Event parse_event(Cursor& cursor) {
    Event event;
    event.place = cursor.place();
    const std::size_t first = cursor.offset();
    event.when = parse_when(cursor);
    cursor.skip_space();
    if (cursor.peek() == '<' || cursor.peek() == '>') {
        event.what = parse_packet(cursor);
    } else if (cursor.accept("`")) {
        event.what = Command{parse_until(cursor, "`", "a command")};
    } else if (cursor.accept("%{")) {
        event.what = Assertion{parse_until(cursor, "}%", "an assertion")};
    } else {
        event.what = parse_syscall(cursor);
    }
    if (event.when.ends && !std::holds_alternative<Syscall>(event.what))
        throw Complaint{event.place, "only a call can last (BEGIN...END); a range of times is BEGIN~END"};
    if (cursor.peek() == ';') cursor.advance();
    event.source = std::string(cursor.between(first, cursor.taken()));
    cursor.skip_space();
    if (!cursor.on_new_line()) cursor.expected("the end of the line");
    return event;
}

void parse_setting(Cursor& cursor, Script& script) {
    const std::string name = cursor.name("the name of a setting");
    if (!cursor.accept("=")) cursor.expected("'=VALUE' of the setting");
    const std::size_t first = cursor.offset();
    while (!cursor.at_end() && !std::isspace(static_cast<unsigned char>(cursor.peek()))) cursor.advance();
    if (cursor.offset() == first) cursor.expected("a value");
    script.settings[name] = std::string(cursor.between(first, cursor.offset()));
}

/// "// kernel: differs because REASON" and "// kernel: skip REASON", anywhere, on a line of its own.
KernelMark find_kernel_mark(std::string_view text) {
    KernelMark mark;
    std::uint32_t line = 1;
    for (std::size_t at = 0; at < text.size(); ++line) {
        const std::size_t end = std::min(text.find('\n', at), text.size());
        constexpr std::string_view kOpening = "// kernel: ";
        std::string_view here = text.substr(at, end - at);
        at = end + 1;
        if (!here.starts_with(kOpening)) continue;
        here.remove_prefix(kOpening.size());
        constexpr std::string_view kDiffers = "differs because ", kSkip = "skip ";
        if (here.starts_with(kDiffers) && here.size() > kDiffers.size())
            mark = {KernelMark::Kind::kDiffers, std::string(here.substr(kDiffers.size()))};
        else if (here.starts_with(kSkip) && here.size() > kSkip.size())
            mark = {KernelMark::Kind::kSkip, std::string(here.substr(kSkip.size()))};
        else
            throw Complaint{{line, 12}, "expected 'differs because REASON' or 'skip REASON'"};
    }
    return mark;
}

}  // namespace

std::expected<Script, Complaint> parse(std::string_view text) {
    if (text.size() > kMaxText) return std::unexpected(Complaint{{}, "a script has at most 1 MiB"});
    try {
        Script script;
        script.kernel = find_kernel_mark(text);
        Cursor cursor(text);
        for (cursor.skip_space(); cursor.accept("--"); cursor.skip_space()) parse_setting(cursor, script);
        for (cursor.skip_space(); !cursor.at_end(); cursor.skip_space()) script.events.push_back(parse_event(cursor));
        if (script.events.empty()) cursor.complain("the script has no event");
        return script;
    } catch (const Complaint& complaint) {
        return std::unexpected(complaint);
    }
}

}  // namespace culvert::script
