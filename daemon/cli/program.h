// What will the program be that `culvert run` is asked to start, and can LD_PRELOAD reach it?
//
//   name --PATH--> file --"#!"--> interpreter --ELF--> verdict
//
// The dynamic linker of a dynamically linked glibc program loads libculvert.so. Nothing loads it into a static program, into
// one of another architecture, or (AT_SECURE, ld.so(8)) into one that gains privileges by being run; and in a Go program it is
// never asked.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "shm/base/error.h"

namespace culvert::cli {

/// Finds `name` as execvp(3) does. Errors: ENOENT (nothing there), EACCES (there, but not to be run by us).
Result<std::string> find_program(const std::string& name, const char* search_path);

/// Empty when LD_PRELOAD reaches the program at `path`; else the reason, to stand behind "LD_PRELOAD cannot reach it: ".
/// `uid` and `gid` are those of the caller. A file that cannot be read is given the benefit of the doubt.
std::string why_unreachable(const std::string& path, uid_t uid, gid_t gid);

/// Names of the libraries that the ELF file at `path` asks for (DT_NEEDED), in order; none if it is something else or damaged.
std::vector<std::string> needed_libraries(const std::string& path);

}  // namespace culvert::cli
