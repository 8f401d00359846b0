#include "daemon/base/drop.h"

#include <array>
#include <cctype>
#include <string>

namespace culvert {

namespace {

std::string snake_case(const char* name) {
    std::string out;
    for (const char* c = name + 1; *c != '\0'; ++c) {
        if (std::isupper(static_cast<unsigned char>(*c)) != 0 && !out.empty()) out += '_';
        out += static_cast<char>(std::tolower(static_cast<unsigned char>(*c)));
    }
    return out;
}

constexpr std::array<const char*, kDropCount> kTexts = {
#define CULVERT_DROP_TEXT(name, text) text,
    CULVERT_DROPS(CULVERT_DROP_TEXT)
#undef CULVERT_DROP_TEXT
};

}  // namespace

const char* drop_name(Drop drop) {
    static const std::array<std::string, kDropCount> names = {
#define CULVERT_DROP_NAME(name, text) snake_case(#name),
        CULVERT_DROPS(CULVERT_DROP_NAME)
#undef CULVERT_DROP_NAME
    };
    return names.at(static_cast<std::size_t>(drop)).c_str();
}

const char* drop_text(Drop drop) { return kTexts.at(static_cast<std::size_t>(drop)); }

}  // namespace culvert
