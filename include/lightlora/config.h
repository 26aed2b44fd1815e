// SPDX-License-Identifier: Apache-2.0
#pragma once

// Where the bodies of the library's functions are. As it comes, in the headers: each header
// includes its namesake in impl/ at its end, and nothing needs to be linked. With
// LIGHTLORA_SEPARATE_COMPILATION defined everywhere, in the one source file that includes
// <lightlora/impl/source.h>: all others then compile declarations only. CMake's target
// lightlora::compiled does both.
#ifdef LIGHTLORA_SEPARATE_COMPILATION
/// How a function is defined in impl/: `inline` or, compiled separately, as any other.
#define LIGHTLORA_INLINE
#else
/// Defined while the headers bring their functions' bodies along.
#define LIGHTLORA_HEADER_ONLY
/// How a function is defined in impl/: `inline` or, compiled separately, as any other.
#define LIGHTLORA_INLINE inline
#endif
