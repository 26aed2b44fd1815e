// SPDX-License-Identifier: Apache-2.0
#pragma once

// Where the bodies of the library's functions are. As it comes, in the headers: x.h includes
// x-inl.h at its end, and nothing needs to be linked. With LIGHTLORA_COMPILED defined for every
// file of a program, in the one source file that includes <lightlora/detail/source.h>: all others
// then compile declarations only. CMake's target lightlora::compiled does both.
#ifdef LIGHTLORA_COMPILED
/// How a function is defined in an -inl.h file: `inline` or, compiled once, as any other.
#define LIGHTLORA_INLINE
#else
/// How a function is defined in an -inl.h file: `inline` or, compiled once, as any other.
#define LIGHTLORA_INLINE inline
#endif

/// Version of the library. The build reads these three numbers from here, so they are stated
/// nowhere else.
#define LIGHTLORA_VERSION_MAJOR 0
#define LIGHTLORA_VERSION_MINOR 1
#define LIGHTLORA_VERSION_PATCH 0

#define LIGHTLORA_DETAIL_TEXT_(x) #x
#define LIGHTLORA_DETAIL_TEXT(x) LIGHTLORA_DETAIL_TEXT_(x)

/// "major.minor.patch" as a string literal.
#define LIGHTLORA_VERSION                                                       \
  LIGHTLORA_DETAIL_TEXT(LIGHTLORA_VERSION_MAJOR)                                \
  "." LIGHTLORA_DETAIL_TEXT(LIGHTLORA_VERSION_MINOR) "." LIGHTLORA_DETAIL_TEXT( \
      LIGHTLORA_VERSION_PATCH)
