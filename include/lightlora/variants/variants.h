// SPDX-License-Identifier: Apache-2.0
#pragma once

// Every variant of the library. A new variant is its file and a line here.
#include <lightlora/variants/classic_lora.h>
#include <lightlora/variants/fused_down_up_lora.h>
#include <lightlora/variants/ia3.h>
#include <lightlora/variants/light_lora.h>
#include <lightlora/variants/loha.h>
#include <lightlora/variants/lokr.h>
#include <lightlora/variants/lora_xs.h>
#include <lightlora/variants/vera.h>
