// SPDX-License-Identifier: Apache-2.0
// The package's headers are found and agree with the LibTorch that is found.
#include <lightlora/options.h>

#include <iostream>

int main() { std::cout << lightlora::LoRAOptions(4).rank() << " " << LIGHTLORA_VERSION << "\n"; }
