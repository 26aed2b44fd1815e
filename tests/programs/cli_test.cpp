// SPDX-License-Identifier: Apache-2.0
// Flags, help, error lines and exit statuses that all programs share; sizes and times for people.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <iostream>
#include <limits>
#include <new>
#include <sstream>
#include <stdexcept>

#include "support.h"
#include "support/cli/app.h"
#include "support/cli/format.h"
#include "support/cli/interrupt.h"
#include "support/cli/run.h"

namespace {

/// Stands for standard output or standard error while it lives.
class Captured {
 public:
  explicit Captured(std::ostream& stream) : stream_(stream), old_(stream.rdbuf(text_.rdbuf())) {}
  ~Captured() { stream_.rdbuf(old_); }
  std::string text() const { return text_.str(); }

 private:
  std::ostringstream text_;
  std::ostream& stream_;
  std::streambuf* old_;
};

struct Flags {
  std::string prompt, variant = "light";
  int64_t rank = 4;
  double learning_rate = 5e-4;
  std::optional<double> network_alpha;
  std::optional<int64_t> max_train_steps;
  std::vector<std::string> lora;
  bool center_crop = false;
};

struct Result {
  int status;
  std::string out, err;
  Flags flags;
};

Result run_program(std::vector<std::string> arguments, const std::function<void()>& body = [] {}) {
  Flags flags;
  cli::App app("paint", "Paints a picture.", "paint --prompt 'a cat' --rank 8");
  app.group("Picture");
  app.add_option("--prompt", flags.prompt, "What to paint")->required();
  app.group("Adapter");
  app.add_option("--rank", flags.rank, "Rank of the factors")->check(cli::at_least(1));
  app.add_option("--variant", flags.variant, "Kind of adapter")
      ->check(cli::one_of({"classic", "light", "fused"}));
  app.add_option("--learning_rate", flags.learning_rate, "Step size")->check(cli::above(0));
  app.add_option("--network_alpha", flags.network_alpha, "Numerator of the scale");
  app.add_option("--max_train_steps", flags.max_train_steps, "Steps")
      ->check(cli::between(1, 1000000));
  app.add_option("--lora", flags.lora, "Adapter file; may be given several times");
  app.add_flag("--center_crop", flags.center_crop, "Crop the middle");
  app.absent("--push_to_hub", "nothing is sent anywhere");
  std::vector<const char*> argv = {"paint"};
  for (const auto& argument : arguments) argv.push_back(argument.c_str());
  Captured out(std::cout), err(std::cerr);
  const int status = cli::run(static_cast<int>(argv.size()), argv.data(), app, body);
  return {status, out.text(), err.text(), flags};
}

/// The one line of standard error of a call that must fail with this status.
std::string error_of(
    const std::vector<std::string>& arguments, int status = 2,
    const std::function<void()>& body = [] {}) {
  const Result result = run_program(arguments, body);
  CHECK(result.status == status);
  CHECK(std::count(result.err.begin(), result.err.end(), '\n') == 1);
  return result.err;
}

std::string body_error(const std::function<void()>& body, int status = 1) {
  return error_of({"--prompt", "x"}, status, body);
}

}  // namespace

TEST_CASE("cli: flags with underscores and with dashes are the same", "[cli]") {
  const auto a = run_program({"--prompt", "x", "--learning_rate", "0.5", "--center_crop"});
  const auto b = run_program({"--prompt", "x", "--learning-rate=0.5", "--center-crop"});
  CHECK(a.status == 0);
  CHECK(b.status == 0);
  CHECK(a.flags.learning_rate == 0.5);
  CHECK(b.flags.learning_rate == 0.5);
  CHECK(a.flags.center_crop);
  CHECK(b.flags.center_crop);
  CHECK(a.err.empty());
}

TEST_CASE("cli: unset flags keep their defaults and optional ones stay empty", "[cli]") {
  const auto flags = run_program({"--prompt", "x"}).flags;
  CHECK(flags.rank == 4);
  CHECK_FALSE(flags.network_alpha.has_value());
  CHECK_FALSE(flags.max_train_steps.has_value());
  CHECK_FALSE(flags.center_crop);
  CHECK(run_program({"--prompt", "x", "--network_alpha", "-2.5"}).flags.network_alpha == -2.5);
}

TEST_CASE("cli: the last value of a repeated flag counts, and a list takes one value per use",
          "[cli]") {
  const auto flags = run_program({"--prompt", "x", "--rank", "2", "--rank", "8", "--lora", "a:0.5",
                                  "--lora", "b", "--prompt", "y"})
                         .flags;
  CHECK(flags.rank == 8);
  CHECK(flags.prompt == "y");
  CHECK(flags.lora == std::vector<std::string>{"a:0.5", "b"});
}

TEST_CASE("cli: a text value may be empty, bracketed or begin with a dash", "[cli]") {
  for (const std::string text : {"", "[a, b]", "-5 degrees", "--x", "a=b", "猫 \n é"}) {
    CHECK(run_program({"--prompt", text}).flags.prompt == text);
    CHECK(run_program({"--prompt=" + text}).flags.prompt == text);
  }
}

TEST_CASE("cli: an unknown flag is named and the nearest one suggested", "[cli]") {
  CHECK(error_of({"--prompt", "x", "--rnak", "3"}) ==
        "paint: error: unknown flag '--rnak'; hint: did you mean '--rank'?\n");
  CHECK(
      error_of({"--prompt", "x", "--max-trian-steps=3"}) ==
      "paint: error: unknown flag '--max-trian-steps'; hint: did you mean '--max_train_steps'?\n");
  CHECK(error_of({"--prompt", "x", "--steps", "3"}) ==
        "paint: error: unknown flag '--steps'; hint: did you mean '--max_train_steps'?\n");
  CHECK(error_of({"--prompt", "x", "--zzzzzzzz"}) ==
        "paint: error: unknown flag '--zzzzzzzz'; hint: see --help\n");
  // A misspelt required flag is unknown rather than missing.
  CHECK(error_of({"--promt", "x"}) ==
        "paint: error: unknown flag '--promt'; hint: did you mean '--prompt'?\n");
}

TEST_CASE("cli: a flag that others have is answered with the reason why it is not there", "[cli]") {
  for (const std::string flag : {"--push_to_hub", "--push-to-hub"}) {
    CHECK(error_of({"--prompt", "x", flag}) ==
          "paint: error: '" + flag + "' is not offered: nothing is sent anywhere\n");
  }
}

namespace {

enum class Colour { red, green };

// A program with one colour that is always there and one that may be left open.
struct Painter {
  Colour wall = Colour::green;
  std::optional<Colour> door;

  int run(std::vector<const char*> arguments) {
    cli::App app("paint", "Paints a wall.", "paint --wall red");
    app.add_choice("--wall", wall, {{"red", Colour::red}, {"green", Colour::green}}, "Colour");
    app.add_choice("--door", door,
                   {{"as_wall", std::nullopt}, {"red", Colour::red}, {"rouge", Colour::red}},
                   "Colour")
        ->free_on_resume();
    arguments.insert(arguments.begin(), "paint");
    const int status = cli::run(static_cast<int>(arguments.size()), arguments.data(), app, [] {});
    settings = app.settings();
    help = app.help_text();
    return status;
  }

  std::vector<cli::Setting> settings;
  std::string help;
};

}  // namespace

TEST_CASE("cli: a choice is a value of its own type, and is written as its first word", "[cli]") {
  Painter painter;
  CHECK(painter.run({"--wall", "red", "--door=rouge"}) == 0);
  CHECK(painter.wall == Colour::red);
  CHECK(painter.door == Colour::red);
  CHECK(cli::config_text(painter.settings) == "wall = \"red\"\ndoor = \"red\"\n");
  CHECK(painter.run({"--door", "as_wall", "--wall", "Green"}) == 0);
  CHECK_FALSE(painter.door.has_value());
  CHECK(cli::config_text(painter.settings) == "wall = \"green\"\ndoor = \"as_wall\"\n");
  CHECK_THAT(painter.help, ContainsSubstring("--door as_wall|red|rouge"));
  CHECK_THAT(painter.help, ContainsSubstring("(default red)"));
  Captured err(std::cerr);
  CHECK(painter.run({"--wall", "gren"}) == 2);
  CHECK(err.text() ==
        "paint: error: '--wall': expected one of red, green, got 'gren'; hint: did you mean "
        "'green'?\n");
}

TEST_CASE("cli: a flag says itself whether a resumed run may change it", "[cli]") {
  Painter painter;
  painter.run({});
  REQUIRE(painter.settings.size() == 2);
  CHECK_FALSE(painter.settings[0].free_on_resume);
  CHECK(painter.settings[1].free_on_resume);
}

TEST_CASE("cli: missing and stray arguments are bad usage", "[cli]") {
  CHECK(error_of({}) == "paint: error: missing required flag '--prompt'; hint: see --help\n");
  CHECK(error_of({"--prompt", "a", "cat"}) ==
        "paint: error: unexpected argument 'cat'; hint: put quotes around a value that contains "
        "spaces\n");
  CHECK(error_of({"--prompt", "x", "--rank"}) ==
        "paint: error: '--rank': expected a value, got none\n");
  CHECK(error_of({"--prompt", "--rank", "3"}) ==
        "paint: error: '--prompt': expected a value, got the flag '--rank'\n");
}

TEST_CASE("cli: values of the wrong kind or out of range are bad usage", "[cli]") {
  const auto with = [](const std::string& flag, const std::string& value) {
    return error_of({"--prompt", "x", flag, value});
  };
  CHECK(with("--rank", "0") == "paint: error: '--rank': expected at least 1, got '0'\n");
  CHECK(with("--rank", "4.5") == "paint: error: '--rank': expected an integer, got '4.5'\n");
  CHECK(with("--rank", "four") == "paint: error: '--rank': expected an integer, got 'four'\n");
  CHECK(with("--rank", "99999999999999999999") ==
        "paint: error: '--rank': expected an integer, got '99999999999999999999'\n");
  CHECK(with("--rank", "") == "paint: error: '--rank': expected an integer, got ''\n");
  CHECK(with("--learning-rate", "0") ==
        "paint: error: '--learning_rate': expected more than 0, got '0'\n");
  CHECK(with("--learning_rate", "nan") ==
        "paint: error: '--learning_rate': expected a number, got 'nan'\n");
  CHECK(with("--max_train_steps", "0") ==
        "paint: error: '--max_train_steps': expected a number from 1 to 1000000, got '0'\n");
  CHECK(with("--variant", "clasic") ==
        "paint: error: '--variant': expected one of classic, light, fused, got 'clasic'; hint: did "
        "you mean 'classic'?\n");
  CHECK(error_of({"--prompt", "x", "--center_crop=maybe"}) ==
        "paint: error: '--center_crop': expected no value or true or false, got 'maybe'\n");
}

TEST_CASE("cli: --help shows groups, defaults, choices and the example on standard output",
          "[cli]") {
  const auto help = run_program({"--help"});
  CHECK(help.status == 0);
  CHECK(help.err.empty());
  CHECK_THAT(help.out, ContainsSubstring("paint (lightlora) 0."));
  CHECK_THAT(help.out, ContainsSubstring("Usage: paint --prompt TEXT [flags]\n"));
  CHECK_THAT(help.out, ContainsSubstring("\nPicture:\n  --prompt TEXT"));
  CHECK_THAT(help.out, ContainsSubstring("What to paint (required)\n"));
  CHECK_THAT(help.out, ContainsSubstring("\nAdapter:\n  --rank INT"));
  CHECK_THAT(help.out, ContainsSubstring("Rank of the factors (default 4)\n"));
  CHECK_THAT(help.out, ContainsSubstring("  --variant classic|light|fused"));
  CHECK_THAT(help.out, ContainsSubstring("(default 0.0005)"));
  CHECK_THAT(help.out, ContainsSubstring("\nExample:\n  paint --prompt 'a cat' --rank 8\n"));
  CHECK_THAT(help.out, !ContainsSubstring("--max-train-steps"));
  std::istringstream lines(help.out);
  for (std::string line; std::getline(lines, line);) CHECK(line.size() <= 100);
}

TEST_CASE("cli: --version needs no other flag", "[cli]") {
  const auto version = run_program({"--version"});
  CHECK(version.status == 0);
  CHECK_THAT(version.out, Catch::Matchers::StartsWith("paint (lightlora) 0."));
  CHECK(std::count(version.out.begin(), version.out.end(), '\n') == 1);
}

TEST_CASE("cli: every way for the body to fail ends in one line and the right status", "[cli]") {
  CHECK(body_error([] { TORCH_CHECK(false, "'a.png': expected a picture, got a text file"); }) ==
        "paint: error: 'a.png': expected a picture, got a text file\n");
  CHECK(body_error([] { TORCH_CHECK_VALUE(false, "'--init': expected up_zero, got down_zero"); },
                   2) == "paint: error: '--init': expected up_zero, got down_zero\n");
  CHECK(body_error([] { throw std::runtime_error("first\nsecond"); }) == "paint: error: first\n");
  CHECK(body_error([] { throw std::bad_alloc(); }) ==
        "paint: error: out of memory; hint: a smaller batch, size or data type\n");
  CHECK(body_error([] { throw 7; }) == "paint: error: an exception of unknown type\n");
  // A real failed allocation of LibTorch's.
  const std::string memory =
      body_error([] { at::empty({int64_t{1} << 46}, at::TensorOptions(at::kByte)); });
  CHECK_THAT(memory,
             ContainsSubstring("paint: error: out of memory, tried to allocate 70368744177664 "
                               "bytes; hint: a smaller batch"));
  // A real error of LibTorch's, which has several lines and a backtrace.
  const std::string shapes = body_error([] { at::ones({2, 3}).matmul(at::ones({2, 3})); });
  CHECK_THAT(shapes, ContainsSubstring("cannot be multiplied (2x3 and 2x3)"));
}

TEST_CASE("cli: LibTorch's warnings are notices on standard output", "[cli]") {
  const auto result = run_program({"--prompt", "x"}, [] { TORCH_WARN("both factors are zero"); });
  CHECK(result.status == 0);
  CHECK(result.out == "paint: notice: both factors are zero\n");
  CHECK(result.err.empty());
}

TEST_CASE("cli: the first signal sets the flag, and a fresh start clears it", "[cli]") {
  cli::reset_interrupted();
  CHECK_FALSE(cli::interrupted());
  raise(SIGINT);
  CHECK(cli::interrupted());
  cli::reset_interrupted();
  CHECK_FALSE(cli::interrupted());
  raise(SIGTERM);
  CHECK(cli::interrupted());
  cli::reset_interrupted();
}

TEST_CASE("cli: the second signal ends the process at once", "[cli]") {
  for (const int second : {SIGINT, SIGTERM}) {
    const pid_t child = fork();
    if (child == 0) {
      cli::interrupted();
      raise(SIGINT);
      if (!cli::interrupted()) _exit(3);
      raise(second);
      _exit(4);
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status));
    CHECK(WTERMSIG(status) == second);
  }
}

TEST_CASE("cli: sizes, times and counts read well", "[cli]") {
  CHECK(cli::format_bytes(0) == "0 bytes");
  CHECK(cli::format_bytes(1) == "1 byte");
  CHECK(cli::format_bytes(999) == "999 bytes");
  CHECK(cli::format_bytes(320400) == "320.4 KB");
  CHECK(cli::format_bytes(999949) == "999.9 KB");
  CHECK(cli::format_bytes(999999) == "1.0 MB");
  CHECK(cli::format_bytes(4265380512) == "4.3 GB");
  CHECK(cli::parse_bytes("6GB") == 6000000000);
  CHECK(cli::parse_bytes("800 MB") == 800000000);
  CHECK(cli::parse_bytes("1.5gib") == 1610612736);
  CHECK(cli::parse_bytes("2G") == 2000000000);
  CHECK(cli::parse_bytes("1000") == 1000);
  for (const auto* text :
       {"", "GB", "-1GB", "0", "6XB", "6GBB", "6 GB x", "1e30", "nan", "ib", "6i"}) {
    CHECK_FALSE(cli::parse_bytes(text));
  }
  CHECK(cli::format_duration(0.421) == "0.42 s");
  CHECK(cli::format_duration(9.999) == "10 s");
  CHECK(cli::format_duration(59.6) == "1 min 00 s");
  CHECK(cli::format_duration(65) == "1 min 05 s");
  CHECK(cli::format_duration(3599.7) == "1 h 00 min");
  CHECK(cli::format_duration(7385) == "2 h 03 min");
  CHECK(cli::format_duration(-1) == "?");
  CHECK(cli::format_duration(std::numeric_limits<double>::quiet_NaN()) == "?");
  CHECK(cli::format_clock(65.9) == "01:05");
  CHECK(cli::format_clock(7387) == "2:03:07");
  CHECK(cli::format_clock(std::numeric_limits<double>::infinity()) == "?");
  CHECK(cli::format_count(0) == "0");
  CHECK(cli::format_count(999) == "999");
  CHECK(cli::format_count(19200) == "19,200");
  CHECK(cli::format_count(-1234567) == "-1,234,567");
  CHECK(cli::format_count(-123) == "-123");
}
