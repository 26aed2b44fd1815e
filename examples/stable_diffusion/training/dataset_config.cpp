// SPDX-License-Identifier: Apache-2.0
#include "training/dataset_config.h"

#include <c10/util/Exception.h>
#include <lightlora/file_io.h>

#include <algorithm>
#include <filesystem>
#include <stdexcept>
#include <type_traits>

#include "support/cli/fmt.h"
#include "support/cli/toml_text.h"

namespace training {

namespace {

// Of numbers in a file that may be a stranger's; --allow_large and the flags are for one's own.
constexpr int64_t kMostRepeats = 100'000, kMostSamples = 10'000'000, kMostTokens = 1000,
                  kMostBatch = 256, kMostEpochs = 1'000'000;
constexpr int64_t kLeastSide = 8, kMostSide = 4096;

// A whole number is written as one, as in sd-scripts: toml++ would cast 1e97 before it looks whether it
// is one, and such a cast may be anything. Elsewhere 1 stands for 1.0.
template <typename Value>
std::optional<Value> value_of(const toml::node& node) {
  if constexpr (std::is_same_v<Value, int64_t>) {
    return node.value_exact<int64_t>();
  } else {
    return node.value<Value>();
  }
}

// One table of the file, and those that stand behind it.
class Level {
 public:
  Level(std::string path, std::vector<const toml::table*> tables)
      : path_(std::move(path)), tables_(std::move(tables)) {}

  template <typename Value>
  std::optional<Value> find(const char* key) const {
    const auto* node = node_of(key);
    if (node == nullptr) return std::nullopt;
    const auto value = value_of<Value>(*node);
    TORCH_CHECK(value, "'", path_, "' line ", node->source().begin.line, ": expected another kind ",
                "of value for '", key, "'");
    return value;
  }
  template <typename Value>
  Value get(const char* key, Value otherwise) const {
    return find<Value>(key).value_or(otherwise);
  }
  /// A number that has to lie between two others.
  template <typename Value>
  std::optional<Value> find(const char* key, Value least, Value most) const {
    const auto value = find<Value>(key);
    TORCH_CHECK(!value || (*value >= least && *value <= most), "'", path_, "' line ",
                node_of(key)->source().begin.line, ": expected a number from ", least, " to ", most,
                " as '", key, "', got ", *value);
    return value;
  }
  template <typename Value>
  Value get(const char* key, Value otherwise, Value least, Value most) const {
    return find<Value>(key, least, most).value_or(otherwise);
  }
  const toml::node* node_of(const char* key) const {
    for (const auto* table : tables_) {
      if (const auto* node = table == nullptr ? nullptr : table->get(key)) return node;
    }
    return nullptr;
  }
  const std::string& path() const { return path_; }
  // The same with a table in front.
  Level below(const toml::table* table) const {
    auto tables = tables_;
    tables.insert(tables.begin(), table);
    return {path_, std::move(tables)};
  }

 private:
  std::string path_;
  std::vector<const toml::table*> tables_;
};

// Keys as sd-scripts has them: those of subsets can stand above them too, for all of them, others in
// one place only. (There alpha_mask and class_tokens are a subset's alone.)
const char* const kOfAnySubset[] = {"num_repeats",
                                    "class_tokens",
                                    "keep_tokens",
                                    "shuffle_caption",
                                    "flip_aug",
                                    "random_crop",
                                    "alpha_mask",
                                    "caption_dropout_rate",
                                    "caption_dropout_every_n_epochs",
                                    "caption_extension",
                                    "caption_prefix",
                                    "caption_suffix",
                                    "caption_tag_dropout_rate"};
const char* const kOfOneSubset[] = {"image_dir", "is_reg", "conditioning_data_dir"};
const char* const kOfDatasets[] = {"enable_bucket",     "min_bucket_reso", "max_bucket_reso",
                                   "bucket_reso_steps", "resolution",      "batch_size"};

enum class Place { general, dataset, subset };

template <std::size_t count>
bool is_among(const char* const (&names)[count], std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

// Keys whose usual value changes nothing here.
bool is_harmless(const toml::node& node) {
  const auto off = node.value<bool>();
  const auto number = node.value<double>();
  return (off && !*off) || (number && *number == 0);
}

void check_keys(const std::string& path, const toml::table& table, Place place) {
  const bool subset = place == Place::subset;
  for (const auto& [key, node] : table) {
    const std::string_view name = key.str();
    const auto where = fmt::format("'{}' line {}: ", path, node.source().begin.line);
    TORCH_CHECK(!subset || !is_among(kOfDatasets, name), where, "expected '", std::string(name),
                "' in [[datasets]] or [general], got it in a subset; hint: it is the same for all ",
                "pictures");
    TORCH_CHECK(subset || !is_among(kOfOneSubset, name), where, "expected '", std::string(name),
                "' in [[datasets.subsets]], got it above them");
    const bool known = is_among(kOfAnySubset, name) || is_among(kOfOneSubset, name) ||
                       is_among(kOfDatasets, name) ||
                       (place == Place::dataset && name == "subsets");
    TORCH_CHECK(known || is_harmless(node), where, "expected a key that is supported here, got '",
                std::string(name), "'");
  }
}

// What else stands at the top would play no part.
void check_top(const std::string& path, const toml::table& file) {
  for (const auto& [key, node] : file) {
    const std::string_view name = key.str();
    TORCH_CHECK(name == "general" || name == "datasets", "'", path, "' line ",
                node.source().begin.line, ": expected [general] or [[datasets]] at the top, got '",
                std::string(name), "'");
    TORCH_CHECK(name != "general" || node.is_table(), "'", path, "' line ",
                node.source().begin.line,
                ": expected a table [general], got another kind of value");
  }
}

std::vector<const toml::table*> tables_of(const std::string& path, const toml::table& table,
                                          const char* key) {
  std::vector<const toml::table*> tables;
  const auto* node = table.get(key);
  if (node == nullptr) return tables;
  const auto* list = node->as_array();
  for (std::size_t i = 0; list != nullptr && i < list->size(); ++i) {
    if (const auto* item = list->get_as<toml::table>(i)) tables.push_back(item);
  }
  TORCH_CHECK(list != nullptr && tables.size() == list->size(), "'", path, "' line ",
              node->source().begin.line, ": expected tables as '", key,
              "', got another kind of value");
  return tables;
}

CaptionOptions caption_options(const Level& subset) {
  CaptionOptions caption;
  caption.shuffle = subset.get("shuffle_caption", false);
  caption.keep_tokens = subset.get<int64_t>("keep_tokens", 0, 0, kMostTokens);
  caption.dropout_rate = subset.get("caption_dropout_rate", 0.0, 0.0, 1.0);
  caption.dropout_every_n_epochs =
      subset.get<int64_t>("caption_dropout_every_n_epochs", 0, 0, kMostEpochs);
  caption.tag_dropout_rate = subset.get("caption_tag_dropout_rate", 0.0, 0.0, 1.0);
  caption.prefix = subset.get<std::string>("caption_prefix", "");
  caption.suffix = subset.get<std::string>("caption_suffix", "");
  return caption;
}

void read_subset(const Level& subset, const std::string& path, DatasetConfig& config) {
  const auto folder = subset.find<std::string>("image_dir");
  TORCH_CHECK(folder, "'", path, "': expected an image_dir in each subset, got none");
  auto extension = subset.find<std::string>("caption_extension");
  if (extension) extension = lightlora::path_component(*extension, path);
  auto pictures = read_pictures(*folder, extension, /*first_line=*/true);
  if (const auto masks = subset.find<std::string>("conditioning_data_dir")) {
    print_notices(add_masks(pictures, *folder, *masks));
  }
  const auto words = subset.find<std::string>("class_tokens");
  const auto random_crop = subset.find<bool>("random_crop");
  for (auto& picture : pictures) {
    if (!picture.caption && words) picture.caption = words;
    picture.repeats *= subset.get<int64_t>("num_repeats", 1, 1, kMostRepeats);
    picture.caption_options = caption_options(subset);
    picture.flip = subset.find<bool>("flip_aug");
    if (random_crop) picture.center_crop = !*random_crop;
    picture.alpha_mask = subset.find<bool>("alpha_mask");
  }
  auto& all = subset.get("is_reg", false) ? config.regularization : config.pictures;
  all.insert(all.end(), pictures.begin(), pictures.end());
}

void read_dataset(const Level& dataset, DatasetConfig& config) {
  auto& data = config.data;
  const auto* resolution = dataset.node_of("resolution");
  if (const auto* sides = resolution ? resolution->as_array() : nullptr) {
    const auto width = sides->get(0) ? value_of<int64_t>(*sides->get(0)) : std::nullopt;
    const auto height = sides->get(1) ? value_of<int64_t>(*sides->get(1)) : width;
    TORCH_CHECK(width && height == width && *width >= kLeastSide && *width <= kMostSide, "'",
                dataset.path(), "' line ", resolution->source().begin.line,
                ": expected a square as 'resolution', got another shape; ",
                "hint: enable_bucket keeps the pictures' own shapes");
    data.resolution = width;
  } else if (resolution != nullptr) {
    data.resolution = dataset.find<int64_t>("resolution", kLeastSide, kMostSide);
  }
  data.enable_bucket = dataset.get("enable_bucket", data.enable_bucket);
  const auto side = [&](const char* key, std::optional<int64_t>& value) {
    if (const auto given = dataset.find<int64_t>(key, kLeastSide, kMostSide)) value = given;
  };
  if (data.enable_bucket) {
    side("min_bucket_reso", data.min_bucket_reso);
    side("max_bucket_reso", data.max_bucket_reso);
    side("bucket_reso_steps", data.bucket_reso_steps);
  }
  // sd-scripts cuts out the middle unless it is told otherwise. Class pictures that no subset names
  // are treated so too.
  data.center_crop = !dataset.get("random_crop", false);
  data.alpha_mask = dataset.get("alpha_mask", data.alpha_mask);
  config.batch_size = dataset.get("batch_size", config.batch_size, int64_t{1}, kMostBatch);
}

}  // namespace

DatasetConfig read_dataset_config(const std::string& path, const DataOptions& data,
                                  int64_t batch_size) {
  const toml::table file = cli::parse_toml(path);
  check_top(path, file);
  const auto* general = file.get_as<toml::table>("general");
  if (general != nullptr) check_keys(path, *general, Place::general);
  const auto datasets = tables_of(path, file, "datasets");
  TORCH_CHECK(datasets.size() == 1, "'", path, "': expected one [[datasets]], got ",
              datasets.size(), "; hint: pictures of several folders are [[datasets.subsets]]");
  DatasetConfig config{{}, {}, data, batch_size};
  check_keys(path, *datasets[0], Place::dataset);
  const Level dataset(path, {datasets[0], general});
  read_dataset(dataset, config);
  for (const auto* subset : tables_of(path, *datasets[0], "subsets")) {
    check_keys(path, *subset, Place::subset);
    read_subset(dataset.below(subset), path, config);
  }
  config.data.check();
  int64_t samples = 0;
  for (const auto* files : {&config.pictures, &config.regularization}) {
    for (const auto& file : *files) samples += file.repeats;
  }
  TORCH_CHECK(samples <= kMostSamples, "'", path, "': expected at most ", kMostSamples,
              " pictures with their repetitions, got ", samples);
  TORCH_CHECK(!config.pictures.empty(), "'", path,
              "': expected pictures in [[datasets.subsets]], got none");
  return config;
}

}  // namespace training
