// SPDX-License-Identifier: Apache-2.0
// Configuration files: what they hold, and how the command line wins over them.
#include "support/cli/config.h"

#include <fstream>
#include <iostream>
#include <sstream>

#include "support.h"
#include "support/cli/app.h"

namespace {

using Texts = std::vector<std::string>;

// Stands for standard output while it lives.
class Captured {
 public:
  Captured() : old_(std::cout.rdbuf(text_.rdbuf())) {}
  ~Captured() { std::cout.rdbuf(old_); }
  Captured(const Captured&) = delete;
  Captured& operator=(const Captured&) = delete;

  std::string text() const { return text_.str(); }

 private:
  std::ostringstream text_;
  std::streambuf* old_;
};

// A program with each kind of value.
struct Trainer {
  std::string folder;
  Texts pictures;
  std::optional<int64_t> max_train_steps = 5000;
  std::optional<double> alpha;
  int64_t num_train_epochs = 1;
  std::string out;  // what it printed

  void read(const Texts& arguments) {
    cli::App app("train", "Trains.", "train");
    app.add_option("--folder", folder, "Folder");
    app.add_option("--pictures", pictures, "Pictures");
    app.add_option("--max_train_steps", max_train_steps, "Steps")->check(cli::at_least(1));
    app.add_option("--alpha", alpha, "Alpha");
    app.add_option("--num_train_epochs", num_train_epochs, "Epochs")
        ->overrules("--max_train_steps");
    app.add_config_flag();
    const Captured text;
    app.read(arguments);
    out = text.text();
    settings = app.settings();
  }

  std::vector<cli::Setting> settings;
};

}  // namespace

TEST_CASE("config: every text of a command line reads back, also bytes that are no UTF-8",
          "[cli]") {
  const ScratchFolder folder;
  for (const std::string text : {"caf\xE9", "\xFF\xFE\x01\"\\ \n", "café", "a.b = 'c'", "\xC3"}) {
    Trainer before;
    before.read({"--folder", text, "--pictures", text, "--pictures", "plain"});
    cli::write_config(folder.file("config.toml"), "train", before.settings);
    Trainer after;
    after.read({"--config", folder.file("config.toml")});
    CHECK(after.folder == text);
    CHECK(after.pictures == Texts{text, "plain"});
  }
  CHECK(cli::config_text({{"folder", cli::ValueKind::text, {"caf\xE9"}}}) ==
        "folder = { bytes = \"caf\\u00E9\" }\n");
  std::ofstream(folder.file("bad.toml")) << "folder = { bytes = \"猫\" }\n";
  CHECK_THROWS_WITH(cli::read_config(folder.file("bad.toml")),
                    ContainsSubstring("bad.toml' line 1") && ContainsSubstring("U+00FF"));
}

TEST_CASE("config: the command line takes back a number that may be left out", "[cli]") {
  const ScratchFolder folder;
  std::ofstream(folder.file("c.toml")) << "max_train_steps = 500\nalpha = 2.5\n";
  Trainer trainer;
  trainer.read({"--config", folder.file("c.toml"), "--max_train_steps=", "--alpha="});
  CHECK_FALSE(trainer.max_train_steps.has_value());
  CHECK_FALSE(trainer.alpha.has_value());
  trainer.read({"--max-train-steps=", "--max_train_steps", "7"});
  CHECK(trainer.max_train_steps == 7);
  trainer.read({"--max_train_steps", "7", "--max_train_steps="});
  CHECK_FALSE(trainer.max_train_steps.has_value());
  // A number that must be there cannot be left out.
  CHECK_THROWS_WITH(trainer.read({"--num_train_epochs="}), ContainsSubstring("--num_train_epochs"));
}

TEST_CASE("config: epochs on the command line take the place of a file's steps", "[cli]") {
  const ScratchFolder folder;
  std::ofstream(folder.file("c.toml")) << "max_train_steps = 500\nnum_train_epochs = 2\n";
  Trainer trainer;
  trainer.read({"--config", folder.file("c.toml"), "--num_train_epochs", "3"});
  CHECK(trainer.num_train_epochs == 3);
  CHECK_FALSE(trainer.max_train_steps.has_value());
  CHECK_THAT(trainer.out, ContainsSubstring("notice: --num_train_epochs is given: max_train_steps "
                                            "= 500 of '"));
  Trainer both;
  both.read({"--config", folder.file("c.toml"), "--num-train-epochs=3", "--max_train_steps", "9"});
  CHECK(both.max_train_steps == 9);
  CHECK(both.out.empty());
  Trainer neither;
  neither.read({"--config", folder.file("c.toml")});
  CHECK(neither.max_train_steps == 500);
  CHECK(neither.num_train_epochs == 2);
}
