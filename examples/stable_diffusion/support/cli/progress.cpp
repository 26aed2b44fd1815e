// SPDX-License-Identifier: Apache-2.0
#include "support/cli/progress.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iostream>

#include "support/cli/fmt.h"
#include "support/cli/format.h"
#include "support/cli/standard_output.h"

namespace cli {

namespace {

constexpr double kRedrawSeconds = 0.1;
constexpr double kLineSeconds = 60;
constexpr int64_t kWidestBar = 40, kNarrowestBar = 5;
constexpr double kHalfLifeSteps = 10;

double steady_seconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

std::string rate(double seconds_per_step) {
  if (!(seconds_per_step > 0)) return "? it/s";
  return seconds_per_step <= 1 ? fmt::format("{:.2f} it/s", 1 / seconds_per_step)
                               : fmt::format("{:.2f} s/it", seconds_per_step);
}

}  // namespace

Progress::Progress(std::string title, int64_t total, ProgressOptions options, int64_t first_step)
    : title_(std::move(title)),
      total_(std::max<int64_t>(total, 0)),
      first_step_(first_step),
      step_(first_step),
      options_(std::move(options)),
      stream_(options_.stream ? options_.stream : &std::cout) {
  using Style = ProgressOptions::Style;
  bar_ = options_.style == Style::kBar ||
         (options_.style == Style::kDetect && standard_output_is_terminal());
  if (!options_.clock) options_.clock = steady_seconds;
  start_ = last_update_ = last_shown_ = options_.clock();
  if (bar_) draw_bar();
}

Progress::~Progress() {
  if (line_is_open_) *stream_ << std::endl;
}

double Progress::elapsed() const { return options_.clock() - start_; }

void Progress::update(int64_t step, const Postfix& postfix) {
  if (finished_) return;
  const double now = options_.clock();
  if (step > step_) {
    const auto steps = static_cast<double>(step - step_);
    const double measured = (now - last_update_) / steps;
    const double kept = measured_ < 2 ? 0 : std::exp2(-steps / kHalfLifeSteps);
    if (measured_ > 0) seconds_per_step_ = kept * seconds_per_step_ + (1 - kept) * measured;
    ++measured_;
    last_update_ = now;
  }
  step_ = step;
  postfix_.clear();
  for (const auto& [name, value] : postfix) postfix_ += fmt::format(" {}={:.4g}", name, value);
  if (bar_) {
    if (now - last_shown_ >= kRedrawSeconds || step_ >= total_) draw_bar();
  } else if (text_line_is_due(now)) {
    write_text_line();
  }
}

void Progress::print(const std::string& line) {
  if (line_is_open_) *stream_ << "\r\x1b[K";
  *stream_ << line << "\n";
  if (line_is_open_) draw_bar();
  stream_->flush();
}

void Progress::finish() {
  if (finished_) return;
  finished_ = true;
  if (bar_) {
    draw_bar();
    *stream_ << std::endl;
    line_is_open_ = false;
  } else if (last_shown_step_ != step_) {
    write_text_line();
  }
}

bool Progress::text_line_is_due(double now) const {
  if (step_ == last_shown_step_) return false;
  if (last_shown_step_ < 0 || step_ >= total_ || now - last_shown_ >= kLineSeconds) return true;
  return step_ * 10 / total_ > last_shown_step_ * 10 / total_;
}

std::string Progress::bar_line() const {
  const double share = total_ > 0 ? static_cast<double>(step_) / static_cast<double>(total_) : 1;
  const auto percent = static_cast<int>(std::min(share, 1.0) * 100);
  const double left =
      seconds_per_step_ > 0
          ? seconds_per_step_ * static_cast<double>(std::max<int64_t>(total_ - step_, 0))
          : -1;
  const std::string before = fmt::format("{} {:3}%", title_, percent);
  const std::string after =
      fmt::format(" {}/{} [{}<{}, {}]{}", step_, total_, format_clock(options_.clock() - start_),
                  format_clock(left), rate(seconds_per_step_), postfix_);
  // The last column stays free: a full line would wrap on some terminals.
  const int64_t room = columns() - 1;
  const auto used = static_cast<int64_t>(before.size() + after.size());
  const int64_t width = std::min(kWidestBar, room - used - 2);
  std::string line = before;
  if (width >= kNarrowestBar) {
    const auto filled = static_cast<int64_t>(std::min(share, 1.0) * static_cast<double>(width));
    line += fmt::format("|{:{}}|", std::string(filled, '#'), width);
  }
  line += after;
  return line.substr(0, static_cast<std::size_t>(std::max<int64_t>(room, 0)));
}

std::string Progress::text_line() const {
  const int64_t percent = total_ > 0 ? std::min<int64_t>(step_ * 100 / total_, 100) : 100;
  std::string line =
      fmt::format("{} {}/{} ({}%), {}, {}", title_, step_, total_, percent,
                  format_duration(options_.clock() - start_), rate(seconds_per_step_));
  if (step_ < total_ && seconds_per_step_ > 0) {
    const auto steps = static_cast<double>(total_ - step_);
    line += fmt::format(", {} left", format_duration(seconds_per_step_ * steps));
  }
  return postfix_.empty() ? line : line + "," + postfix_;
}

void Progress::draw_bar() {
  *stream_ << "\r" << bar_line() << "\x1b[K" << std::flush;
  line_is_open_ = true;
  last_shown_ = options_.clock();
  last_shown_step_ = step_;
}

void Progress::write_text_line() {
  *stream_ << text_line() << std::endl;
  last_shown_ = options_.clock();
  last_shown_step_ = step_;
}

int64_t Progress::columns() const {
  return options_.width > 0 ? options_.width : terminal_columns();
}

}  // namespace cli
