// The inner loops of banded maps compiled for each vector unit, and the choice among them when the program runs.
#include "band_kernels.h"

namespace tas_fast {
using torch::headeronly::BFloat16;
using torch::headeronly::Half;
}  // namespace tas_fast

#pragma GCC diagnostic ignored "-Wpsabi"

#define TAS_FAST_UNIT baseline
#define TAS_FAST_BYTES 16
#include "band_kernels_body.h"
#undef TAS_FAST_UNIT
#undef TAS_FAST_BYTES

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#define TAS_FAST_X86_UNITS

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#define TAS_FAST_UNIT avx2
#define TAS_FAST_BYTES 32
#include "band_kernels_body.h"
#undef TAS_FAST_UNIT
#undef TAS_FAST_BYTES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#define TAS_FAST_UNIT avx512
#define TAS_FAST_BYTES 64
#include "band_kernels_body.h"
#undef TAS_FAST_UNIT
#undef TAS_FAST_BYTES
#pragma GCC pop_options
#endif

namespace tas_fast {

template <typename T>
const Kernels<T>& kernels() {
#ifdef TAS_FAST_X86_UNITS
  if (__builtin_cpu_supports("x86-64-v4")) {
    return avx512::table<T>;
  }
  if (__builtin_cpu_supports("x86-64-v3")) {
    return avx2::table<T>;
  }
#endif
  return baseline::table<T>;
}

template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();
template const Kernels<BFloat16>& kernels<BFloat16>();
template const Kernels<Half>& kernels<Half>();

}  // namespace tas_fast
