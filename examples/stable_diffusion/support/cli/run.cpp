// SPDX-License-Identifier: Apache-2.0
#include "support/cli/run.h"

#include <c10/util/Exception.h>
#include <lightlora/file_io.h>

#include <CLI/Error.hpp>
#include <algorithm>
#include <exception>
#include <filesystem>
#include <iostream>
#include <new>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <system_error>

#include "support/cli/fmt.h"
#include "support/cli/interrupt.h"
#include "support/cli/message.h"
#include "support/cli/process.h"
#include "support/cli/standard_output.h"
#include "support/files/json_file.h"

namespace cli {

namespace {

constexpr int kFailure = 1;
constexpr int kBadUsage = 2;

// The library's hint names its own option; who runs a program needs the flag that sets it.
std::string with_flag(const std::string& line, const c10::Error& error, const App& app) {
  const auto* file = dynamic_cast<const lightlora::SafetensorsError*>(&error);
  const auto* flag = app.get_option_no_throw("--allow_trailing_bytes");
  const bool helps = file != nullptr && flag != nullptr && flag->count() == 0 &&
                     file->fault() == lightlora::SafetensorsFault::trailing_bytes;
  if (!helps) return line;
  return line.substr(0, line.find("; hint:")) + "; hint: accept them with --allow_trailing_bytes";
}

/// LibTorch's own out-of-memory messages speak of allocators; a user needs the size and a way out.
std::string message_of(const c10::Error& error, const App& app) {
  const std::string line = with_flag(message_line(error.what_without_backtrace()), error, app);
  const bool memory = line.find("can't allocate memory") != std::string::npos ||
                      dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr;
  if (!memory) return line;
  const auto start = line.find("ried to allocate");
  const std::string size =
      start == std::string::npos ? "" : ", t" + line.substr(start, line.find(". ", start) - start);
  return fmt::format("out of memory{}; hint: a smaller batch, size or data type", size);
}

constexpr const char* kOutOfMemory = "out of memory; hint: a smaller batch, size or data type";

int fail(const std::string& program, const std::string& message, int status) {
  std::cout.flush();
  std::cerr << fmt::format("{}: error: {}\n", program, message_line(message)) << std::flush;
  return status;
}

// The words of the standard library's exceptions tell a user nothing.
std::string message_of(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr ||
      dynamic_cast<const std::length_error*>(&error) != nullptr) {
    return kOutOfMemory;
  }
  if (const auto* file = dynamic_cast<const std::filesystem::filesystem_error*>(&error)) {
    return fmt::format("'{}': expected a file or folder that can be used, got '{}'",
                       file->path1().string(), file->code().message());
  }
  const auto* json = dynamic_cast<const nlohmann::json::exception*>(&error);
  if (json != nullptr || dynamic_cast<const std::logic_error*>(&error) != nullptr) {
    return fmt::format(
        "expected input that the program understands, got the error '{}'; hint: is "
        "one of the files damaged?",
        json != nullptr ? sd::words_of(*json) : error.what());
  }
  return error.what();
}

// Where no handler is in reach, in a thread or a destructor, a program would end by a signal.
[[noreturn]] void end_with_a_line() {
  std::string line = "error: expected to go on, got an error in a thread of its own\n";
  try {
    if (const auto error = std::current_exception()) std::rethrow_exception(error);
  } catch (const c10::Error& error) {
    line = "error: " + message_line(error.what_without_backtrace()) + "\n";
  } catch (const std::exception& error) {
    line = "error: " + message_line(message_of(error)) + "\n";
  } catch (...) {
  }
  end_process(kFailure, line);
}

class NoticeHandler : public c10::WarningHandler {
 public:
  explicit NoticeHandler(std::string program) : program_(std::move(program)) {}
  void process(const c10::Warning& warning) override {
    std::cout << fmt::format("{}: notice: {}\n", program_, message_line(warning.msg()))
              << std::flush;
  }

 private:
  std::string program_;
};

// Whether an error begins with the name of a file that is there: what a file says is no bad usage.
bool is_about_a_file(const std::string& message) {
  const auto end = message.empty() || message[0] != '\'' ? message.npos : message.find('\'', 1);
  if (end == message.npos) return false;
  std::string name = message.substr(1, end - 1);
  std::error_code error;
  if (std::filesystem::exists(name, error)) return true;
  name.resize(std::min(name.rfind(": "), name.size()));  // a part in it
  return std::filesystem::exists(name, error);
}

int run_body(const App& app, const std::function<void()>& body) {
  const std::string program = app.get_name();
  NoticeHandler handler(program);
  const c10::WarningUtils::WarningHandlerGuard guard(&handler);
  try {
    body();
    std::cout.flush();
    const auto [message, status] = stop_status();
    if (status != 0) std::cerr << fmt::format("{}: {}\n", program, message_line(message));
    return status;
  } catch (const c10::ValueError& error) {
    const bool file = is_about_a_file(error.what_without_backtrace());
    return fail(program, message_of(error, app), file ? kFailure : kBadUsage);
  } catch (const c10::Error& error) {
    return fail(program, message_of(error, app), interrupted_status(kFailure));
  } catch (const std::exception& error) {
    return fail(program, message_of(error), kFailure);
  } catch (...) {
    return fail(program, "an exception of unknown type", kFailure);
  }
}

int run_all(int argc, const char* const* argv, App& app, const std::function<void()>& body) {
  try {
    app.read(std::vector<std::string>(argv + std::min(argc, 1), argv + argc));
  } catch (const CLI::CallForVersion& version) {
    std::cout << version.what() << std::endl;
    return 0;
  } catch (const CLI::Success&) {
    std::cout << app.help_text() << std::flush;
    return 0;
  } catch (const c10::Error& error) {
    return fail(app.get_name(), message_of(error, app), kFailure);
  } catch (const std::bad_alloc& error) {
    return fail(app.get_name(), message_of(error), kFailure);
  } catch (const std::exception& error) {
    return fail(app.get_name(), error.what(), kBadUsage);
  }
  return run_body(app, body);
}

}  // namespace

int run(int argc, const char* const* argv, App& app, const std::function<void()>& body) {
  outlive_outputs();
  std::set_terminate(end_with_a_line);
  StandardOutput output;
  const int status = run_all(argc, argv, app, body);
  const std::string lost = output.finish();
  if (lost.empty() || status != 0) return status;
  return fail(app.get_name(),
              fmt::format("standard output: expected to write all of it, got '{}'; hint: files are "
                          "written, what was printed is lost",
                          lost),
              kFailure);
}

}  // namespace cli
