// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <string>
#include <utility>
#include <vector>

namespace cli {

/// Where and how a Progress is shown; the defaults fit the standard output of this process.
struct ProgressOptions {
  /// Standard output if null.
  std::ostream* stream = nullptr;
  enum class Style {
    kDetect,  ///< a bar if standard output is a terminal (and TERM is not "dumb"), else lines
    kBar,     ///< one line that is drawn over and over
    kLines,  ///< a line of its own at the first step, about every tenth of the way, and at the last
  };
  Style style = Style::kDetect;
  /// Columns of the terminal; 0: ask it at every drawing.
  int64_t width = 0;
  /// Seconds from any fixed moment; a steady clock if empty.
  std::function<double()> clock;
};

/// A value to show beside the bar, such as {"loss", 0.043}.
using Postfix = std::vector<std::pair<std::string, double>>;

/// How far a loop has come: `Steps  45%|####      | 180/400 [00:30<00:37, 5.90 it/s] loss=0.043
/// lr=0.0005`.
///
/// The rate is smoothed (an exponential mean of the time per step that forgets half of it in 10
/// steps), and leaves out the first step, which has other things to do; so it is there from the
/// second one on. A bar is redrawn at most ten times a second. Without a terminal no control character is
/// written, and a line comes at the latest after a minute. The destructor ends an unfinished bar's
/// line, so that an error message starts on a line of its own.
class Progress {
 public:
  /// `first_step` is where a resumed loop starts: it counts as done, but not for the rate.
  Progress(std::string title, int64_t total, ProgressOptions options = {}, int64_t first_step = 0);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `step` steps are done now.
  void update(int64_t step, const Postfix& postfix = {});
  /// What was done since the last update, such as a validation, was no step: its time does not
  /// count for the rate.
  void leave_out() { last_update_ = options_.clock(); }
  /// Writes a whole line above the bar.
  void print(const std::string& line);
  /// Draws the last state and ends the line; later calls do nothing. A loop that broke off calls it
  /// too.
  void finish();

  /// Seconds since the start.
  double elapsed() const;

 private:
  std::string bar_line() const;
  std::string text_line() const;
  void draw_bar();
  void write_text_line();
  bool text_line_is_due(double now) const;
  int64_t columns() const;

  std::string title_;
  int64_t total_, first_step_, step_;
  ProgressOptions options_;
  std::ostream* stream_;
  bool bar_;
  std::string postfix_;
  double start_, last_update_, last_shown_;
  double seconds_per_step_ = 0;
  int64_t measured_ = 0;  // updates that came with a time
  int64_t last_shown_step_ = -1;
  bool line_is_open_ = false, finished_ = false;
};

}  // namespace cli
