// The input side's arithmetic, which equals TensorFlow's to the last bit: products are rounded before they are added,
// and not fused with the addition, which would round once.

#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#if defined(__clang__)
#pragma clang fp contract(off)
#else
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")
#endif

#include "mixup.h"
#include "resize.h"
#include "small.h"

#if defined(__clang__)
#pragma clang fp contract(on)
#else
#pragma GCC pop_options
#endif
