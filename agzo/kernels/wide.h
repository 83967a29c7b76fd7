// Functions that are compiled for several vector widths, the processor's chosen when they are called.

#pragma once

#if defined(__linux__) && defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define WIDE __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define VERSIONED  // a function may also be written once for each of them
#define DEFAULT __attribute__((target("default")))
#define V3 __attribute__((target("arch=x86-64-v3")))
#define V4 __attribute__((target("arch=x86-64-v4")))
#else
#define WIDE
#define DEFAULT
#endif
#define INLINE inline __attribute__((always_inline))
