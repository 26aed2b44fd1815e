// SPDX-License-Identifier: Apache-2.0
#include "research/pretraining/figures.h"

#include <array>

#include "support/cli/fmt.h"

namespace pretraining {
namespace {

using nlohmann::json;

// Where the figures of the table's three columns are; an empty name: nowhere.
using Columns = std::array<const char*, 3>;
constexpr Columns kPlainColumns = {"model", "training_pictures",
                                   "training_pictures_through_autoencoder"};
constexpr Columns kWords = {"words", "words_in_training_pictures", ""};

struct Row {
  std::string title;
  Columns columns;
  const char* name;
  bool is_share = true;
};

std::string cell(const json& value, bool is_share) {
  if (value.is_null()) return "-";
  const auto number = value.get<double>();
  return is_share ? fmt::format("{:.1f}%", 100 * number) : fmt::format("{:.3f}", number);
}

std::string line_of(const json& figures, const Row& row) {
  std::string line = "| " + row.title + " |";
  for (const char* column : row.columns) {
    const json found = figures.value(column, json::object()).value(row.name, json());
    line += " " + cell(found, row.is_share) + " |";
  }
  return line + "\n";
}

}  // namespace

std::string card_of(const json& figures) {
  const auto nearest =
      fmt::format("named emoji is the nearest of the {}", figures.at("vocabulary").get<int64_t>());
  const std::array<Row, 9> rows = {
      {{nearest, kPlainColumns, "named_emoji_is_nearest"},
       {"named emoji among the first five", kPlainColumns, "named_emoji_in_first_five"},
       {"mean cosine with the named emoji", kPlainColumns, "mean_cosine", false},
       {"the classifier sees the named emoji", kPlainColumns, "classifier_names_it"},
       {"background as asked", kPlainColumns, "background_as_asked"},
       {"place as asked", kWords, "place_as_asked"},
       {"size as asked", kWords, "size_as_asked"},
       {"background as asked, beside words for place and size", kWords, "background_as_asked"},
       {"the classifier sees the named emoji, beside such words", kWords, "classifier_names_it"}}};
  std::string text =
      "| | model | true pictures | true pictures through the autoencoder |\n|---|---|---|---|\n";
  for (const Row& row : rows) text += line_of(figures, row);
  return text +
         fmt::format(
             "\nAutoencoder on emoji that it has never seen: {:.1f} dB PSNR ({} pictures).\n",
             figures.at("psnr_unseen").get<double>(), figures.at("unseen_pictures").get<int64_t>());
}

}  // namespace pretraining
