// SPDX-License-Identifier: Apache-2.0
#pragma once

// Where the bodies of the library's functions are. As it comes, in the headers: x.h includes
// x-inl.h at its end, and nothing needs to be linked. With LIGHTLORA_COMPILED defined for every file
// of a program, in the one source file that includes <lightlora/detail/source.h>: all others then
// compile declarations only. CMake's target lightlora::compiled does both.
#ifdef LIGHTLORA_COMPILED
/// How a function is defined in an -inl.h file: `inline` or, compiled once, as any other.
#define LIGHTLORA_INLINE
#else
/// How a function is defined in an -inl.h file: `inline` or, compiled once, as any other.
#define LIGHTLORA_INLINE inline
#endif
