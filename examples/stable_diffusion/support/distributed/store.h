// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <string>

#include "support/distributed/world.h"

namespace distributed {

/// Names and texts that all processes see: c10d's TCPStore, as torchrun or rank 0 serves it.
using Store = c10::intrusive_ptr<c10d::Store>;

/// Connects to the store where the processes meet; rank 0 serves it if no launcher does.
/// Errors: c10::Error saying what is wrong with the address if there is no answer within `seconds`
Store connect_store(const WorldInfo& world, double seconds);

/// A part of a store, in which all names begin with `prefix`.
Store part_of(const Store& store, const std::string& prefix);

/// Whether there is such a name.
bool has(const Store& store, const std::string& name);

/// This machine's address on the way to another: what the other can reach it by.
/// Errors: c10::Error if there is no such machine
std::string address_towards(const std::string& host, uint16_t port);

/// Seconds on a steady clock.
double seconds_now();

}  // namespace distributed
