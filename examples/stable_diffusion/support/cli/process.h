// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

// What the system says of this process and its machine.

namespace cli {

/// The number of this process, which no other one has while it lives.
int64_t process_id();

/// Whether a process of that number is there.
bool is_process_alive(int64_t id);

/// The machine's name in its network, or "unknown".
std::string machine_name();

/// Bytes of memory that the machine has, used or free.
int64_t machine_memory();

/// Bytes of memory that this process takes now, and the most that it took so far; 0 if the system
/// does not tell.
int64_t resident_memory();
int64_t peak_resident_memory();

/// The file that runs: with its folder wherever the system tells it, else as it was called.
std::filesystem::path program_path();

/// Sets a variable of the environment that has no value yet.
void set_default_variable(const char* name, const char* value);

/// Ends the process at once, without destructors, after these words on standard error: for threads
/// and handlers, in which nothing else is safe.
[[noreturn]] void end_process(int status, std::string_view last_words = {});

}  // namespace cli
