// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/util/Exception.h>

#include <new>
#include <stdexcept>
#include <string>

namespace lightlora::detail {

/// Whether an error says where it is, as all do that begin with a name in quotes.
inline bool names_a_file(const std::string& message, const std::string& path) {
  const std::size_t slash = path.rfind('/');
  const std::string folder = slash == path.npos ? "" : path.substr(0, slash + 1);
  // Beside the file lie its configurations.
  const bool beside = !folder.empty() && message.rfind("'" + folder, 0) == 0;
  return beside || message.rfind("'" + path, 0) == 0;
}

[[noreturn]] inline void fail_at(const std::string& path, const std::string& message) {
  TORCH_CHECK(false, names_a_file(message, path) ? "" : "'" + path + "': ", message);
}

/// Calls `read`, whose errors are then c10::Error and name the file: what a file says is no fault of
/// the caller's options (c10::ValueError), whoever found it.
template <typename Read>
auto with_file_name(const std::string& path, const Read& read) {
  try {
    return read();
  } catch (const c10::OutOfMemoryError&) {
    throw;
  } catch (const c10::ValueError& error) {
    fail_at(path, error.what_without_backtrace());
  } catch (const c10::Error& error) {
    if (names_a_file(error.what_without_backtrace(), path)) throw;
    fail_at(path, error.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& error) {
    fail_at(path,
            std::string("expected what its format says, got the error '") + error.what() + "'");
  }
}

}  // namespace lightlora::detail
