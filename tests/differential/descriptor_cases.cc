#include "world.h"
namespace differential { void add_descriptor_cases(Cases&) {} }
