#include "world.h"
namespace differential { void add_option_cases(Cases&) {} }
