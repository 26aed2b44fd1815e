// SPDX-License-Identifier: Apache-2.0
#pragma once

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
