#include "world.h"
namespace differential { void add_datagram_cases(Cases&) {} }
