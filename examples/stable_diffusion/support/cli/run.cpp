// SPDX-License-Identifier: Apache-2.0
#include "support/cli/run.h"

#include <c10/util/Exception.h>
#include <lightlora/file_io.h>

#include <CLI/Error.hpp>
#include <exception>
#include <iostream>
#include <new>
#include <stdexcept>
#include <string>

#include "support/cli/fmt.h"

namespace cli {

namespace {

constexpr int kFailure = 1;
constexpr int kBadUsage = 2;

std::string first_line(const std::string& text) {
  const auto start = text.find_first_not_of(" \t\r\n");
  if (start == std::string::npos) return "unknown error";
  const auto end = text.find_first_of("\r\n", start);
  return text.substr(start, end == std::string::npos ? end : end - start);
}

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
  const std::string line = with_flag(first_line(error.what_without_backtrace()), error, app);
  const bool memory = line.find("can't allocate memory") != std::string::npos ||
                      dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr;
  if (!memory) return line;
  const auto start = line.find("ried to allocate");
  const std::string size =
      start == std::string::npos ? "" : ", t" + line.substr(start, line.find(". ", start) - start);
  return fmt::format("out of memory{}; hint: a smaller batch, size or data type", size);
}

int fail(const std::string& program, const std::string& message, int status) {
  std::cout.flush();
  std::cerr << fmt::format("{}: error: {}\n", program, first_line(message)) << std::flush;
  return status;
}

class NoticeHandler : public c10::WarningHandler {
 public:
  explicit NoticeHandler(std::string program) : program_(std::move(program)) {}
  void process(const c10::Warning& warning) override {
    std::cout << fmt::format("{}: notice: {}\n", program_, first_line(warning.msg())) << std::flush;
  }

 private:
  std::string program_;
};

int run_body(const App& app, const std::function<void()>& body) {
  const std::string program = app.get_name();
  NoticeHandler handler(program);
  const c10::WarningUtils::WarningHandlerGuard guard(&handler);
  try {
    body();
    std::cout.flush();
    return 0;
  } catch (const c10::ValueError& error) {
    return fail(program, message_of(error, app), kBadUsage);
  } catch (const c10::Error& error) {
    return fail(program, message_of(error, app), kFailure);
  } catch (const std::bad_alloc&) {
    return fail(program, "out of memory; hint: a smaller batch, size or data type", kFailure);
  } catch (const std::exception& error) {
    return fail(program, error.what(), kFailure);
  } catch (...) {
    return fail(program, "an exception of unknown type", kFailure);
  }
}

}  // namespace

int run(int argc, const char* const* argv, App& app, const std::function<void()>& body) {
  try {
    app.read(std::vector<std::string>(argv + std::min(argc, 1), argv + argc));
  } catch (const CLI::CallForVersion& version) {
    std::cout << version.what() << std::endl;
    return 0;
  } catch (const CLI::Success&) {
    std::cout << app.help_text() << std::flush;
    return 0;
  } catch (const std::exception& error) {
    return fail(app.get_name(), error.what(), kBadUsage);
  }
  return run_body(app, body);
}

}  // namespace cli
