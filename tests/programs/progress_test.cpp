// SPDX-License-Identifier: Apache-2.0
#include <sstream>

#include "support.h"
#include "support/cli/progress.h"

namespace {

using Style = cli::ProgressOptions::Style;

/// A Progress that writes into a text and whose clock stands still unless told.
struct Bench {
  double now = 1000;
  std::ostringstream out;

  cli::ProgressOptions options(Style style, int64_t width = 80) {
    cli::ProgressOptions result;
    result.stream = &out;
    result.style = style;
    result.width = width;
    result.clock = [this] { return now; };
    return result;
  }
  std::string take() {
    std::string text = out.str();
    out.str("");
    return text;
  }
};

}  // namespace

TEST_CASE("progress: a bar shows share, count, times, rate and values", "[progress]") {
  Bench bench;
  cli::Progress progress("Steps", /*total=*/400, bench.options(Style::kBar, /*width=*/100));
  CHECK_THAT(bench.take(), Catch::Matchers::StartsWith("\rSteps   0%|"));
  for (int64_t step = 1; step <= 200; ++step) {
    bench.now += 0.5;
    bench.take();
    progress.update(step, {{"loss", 0.0431234}, {"lr", 5e-4}});
  }
  CHECK(bench.take() == "\rSteps  50%|" + std::string(15, '#') + std::string(16, ' ') +
                            "| 200/400 [01:40<01:40, 2.00 it/s] loss=0.04312 lr=0.0005\x1b[K");
  CHECK(progress.elapsed() == 100);
}

TEST_CASE("progress: a bar is redrawn at most ten times a second, and always at the end",
          "[progress]") {
  Bench bench;
  cli::Progress progress("Steps", 1000, bench.options(Style::kBar));
  bench.take();
  for (int64_t step = 1; step <= 99; ++step) {
    bench.now += 0.001;
    progress.update(step);
  }
  CHECK(bench.take().empty());
  bench.now += 0.002;
  progress.update(100);
  CHECK_FALSE(bench.take().empty());
  progress.update(1000);
  CHECK_THAT(bench.take(), ContainsSubstring("1000/1000"));
}

TEST_CASE("progress: a bar never exceeds the terminal", "[progress]") {
  for (const int64_t width : {1, 12, 40, 60, 80, 200}) {
    Bench bench;
    cli::Progress progress("Steps", 400, bench.options(Style::kBar, width));
    bench.now += 3;
    bench.take();
    progress.update(17, {{"loss", 0.125}});
    std::string text = bench.take();
    REQUIRE(text.size() >= 4);
    text = text.substr(1, text.size() - 4);  // without \r and the erase sequence
    CHECK(static_cast<int64_t>(text.size()) < std::max<int64_t>(width, 2));
  }
}

TEST_CASE("progress: the rate follows a change of speed smoothly", "[progress]") {
  Bench bench;
  cli::Progress progress("Steps", 1000, bench.options(Style::kBar, 100));
  for (int64_t step = 1; step <= 100; ++step) {
    bench.now += 1;
    progress.update(step);
  }
  for (int64_t step = 101; step <= 110; ++step) {  // ten steps forget half of the old 1 s
    bench.now += 3;
    bench.take();
    progress.update(step);
  }
  CHECK_THAT(bench.take(), ContainsSubstring("2.00 s/it"));
}

TEST_CASE("progress: a resumed loop does not count the earlier steps for the rate", "[progress]") {
  Bench bench;
  cli::Progress progress("Steps", 400, bench.options(Style::kLines), /*first_step=*/300);
  bench.now += 2;
  progress.update(301);
  CHECK(bench.take() == "Steps 301/400 (75%), 2.00 s, ? it/s\n");
}

TEST_CASE("progress: the first step and what was no step do not count for the rate", "[progress]") {
  Bench bench;
  cli::Progress progress("Steps", 10, bench.options(Style::kLines));
  bench.now += 40;  // the first step finds its kernels
  progress.update(1);
  bench.now += 2;
  progress.update(2);
  bench.now += 100;  // a validation
  progress.leave_out();
  bench.now += 2;
  bench.take();
  progress.update(3);
  CHECK_THAT(bench.take(), ContainsSubstring("2.00 s/it, 14 s left"));
}

TEST_CASE("progress: without a terminal come plain lines at the first, every tenth and the last",
          "[progress]") {
  Bench bench;
  cli::Progress progress("Steps", 400, bench.options(Style::kLines));
  for (int64_t step = 1; step <= 400; ++step) {
    bench.now += 0.25;
    progress.update(step, {{"loss", 0.5}});
  }
  progress.finish();
  progress.finish();
  const std::string text = bench.take();
  CHECK(std::count(text.begin(), text.end(), '\n') == 11);
  CHECK_THAT(text, Catch::Matchers::StartsWith(
                       "Steps 1/400 (0%), 0.25 s, ? it/s, loss=0.5\n"
                       "Steps 40/400 (10%), 10 s, 4.00 it/s, 1 min 30 s left, loss=0.5\n"));
  CHECK_THAT(text,
             Catch::Matchers::EndsWith("Steps 400/400 (100%), 1 min 40 s, 4.00 it/s, loss=0.5\n"));
  for (const char c : text) CHECK((c == '\n' || (c >= ' ' && c <= '~')));
}

TEST_CASE("progress: a slow loop without a terminal writes a line at least every minute",
          "[progress]") {
  Bench bench;
  cli::Progress progress("Steps", 1000, bench.options(Style::kLines));
  for (int64_t step = 1; step <= 13; ++step) {
    bench.now += 10;
    progress.update(step);
  }
  const std::string text = bench.take();
  CHECK(std::count(text.begin(), text.end(), '\n') == 3);
  CHECK_THAT(text, ContainsSubstring("Steps 7/1000"));
  CHECK_THAT(text, ContainsSubstring("Steps 13/1000"));
}

TEST_CASE("progress: a loop that broke off shows its last state", "[progress]") {
  Bench bench;
  cli::Progress progress("Steps", 400, bench.options(Style::kLines));
  bench.now += 1;
  progress.update(1);
  bench.take();
  bench.now += 1;
  progress.update(2);
  CHECK(bench.take().empty());
  progress.finish();
  CHECK_THAT(bench.take(), ContainsSubstring("Steps 2/400"));
  progress.update(3);
  CHECK(bench.take().empty());
}

TEST_CASE("progress: a printed line stands above the bar", "[progress]") {
  Bench bench;
  cli::Progress bar("Steps", 400, bench.options(Style::kBar));
  bench.take();
  bar.print("saved a.safetensors");
  CHECK_THAT(bench.take(),
             Catch::Matchers::StartsWith("\r\x1b[Ksaved a.safetensors\n\rSteps   0%|"));
  Bench other;
  cli::Progress lines("Steps", 400, other.options(Style::kLines));
  lines.print("saved a.safetensors");
  CHECK(other.take() == "saved a.safetensors\n");
}

TEST_CASE("progress: an unfinished bar ends its line when it goes", "[progress]") {
  Bench bench;
  {
    cli::Progress progress("Steps", 400, bench.options(Style::kBar));
  }
  CHECK_THAT(bench.take(), Catch::Matchers::EndsWith("\n"));
  {
    cli::Progress progress("Steps", 400, bench.options(Style::kBar));
    progress.finish();
    bench.take();
  }
  CHECK(bench.take().empty());
}

TEST_CASE("progress: an empty loop is complete", "[progress]") {
  Bench bench;
  cli::Progress progress("Steps", 0, bench.options(Style::kLines));
  progress.finish();
  CHECK(bench.take() == "Steps 0/0 (100%), 0.00 s, ? it/s\n");
}
