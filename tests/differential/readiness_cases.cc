#include "world.h"
namespace differential { void add_readiness_cases(Cases&) {} }
