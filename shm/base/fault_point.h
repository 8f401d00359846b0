// Places at which a test kills the process, on both sides of the trust line. In what users run they are nothing.
//
// tests/e2e/fault_points_test.py builds its list from the source: every CULVERT_FAULT_POINT(name) below preload/ and daemon/ is
// tried. The builds with fault points (culvertd_faults, libculvert_faults.so) die by SIGKILL at the point that CULVERT_FAULT
// names, when it is reached for the CULVERT_FAULT_SKIP + 1st time.
#pragma once

#ifdef CULVERT_FAULT_POINTS
namespace culvert {
void fault_point(const char* name) noexcept;
}
#define CULVERT_FAULT_POINT(name) ::culvert::fault_point(#name)
#else
#define CULVERT_FAULT_POINT(name) static_cast<void>(0)
#endif
