// SPDX-License-Identifier: Apache-2.0
#pragma once

// {fmt} formats everything that the programs print and write. It is the copy that comes with
// LibTorch, header-only: that copy has no library, and another version's would not link beside it.
#ifndef FMT_HEADER_ONLY
#define FMT_HEADER_ONLY 1
#endif
#include <fmt/format.h>
#include <fmt/ranges.h>
