// SPDX-License-Identifier: Apache-2.0
#include "models/weights.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/DefaultDtype.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <lightlora/file_io.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <map>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "models/streaming.h"
#include "support/cli/fmt.h"
#include "support/files/json_file.h"
#include "support/files/limits.h"

namespace sd {
namespace {

namespace fs = std::filesystem;

// The place of one tensor among the opened files.
struct Source {
  const lightlora::TensorFile* file;
  const lightlora::TensorInfo* info;
};

using Files = std::vector<std::unique_ptr<lightlora::TensorFile>>;

bool ends_with(const std::string& text, const std::string& ending) {
  return text.size() >= ending.size() &&
         text.compare(text.size() - ending.size(), ending.size(), ending) == 0;
}

// "3 (a, b, c)", the first few by name.
std::string list_names(const std::vector<std::string>& names) {
  constexpr size_t shown = 4;
  const auto end = names.begin() + static_cast<std::ptrdiff_t>(std::min(shown, names.size()));
  const auto more =
      names.size() > shown ? fmt::format(" and {} more", names.size() - shown) : std::string();
  return fmt::format("{} ({}{})", names.size(), fmt::join(names.begin(), end, ", "), more);
}

// The files that an index names, each once; they lie beside the index.
std::vector<std::string> shards_of(const std::string& index) {
  const auto json = read_json_file(index);
  const auto map = json.find("weight_map");
  TORCH_CHECK(map != json.end() && map->is_object() && !map->empty(), "'", index,
              "': expected a weight_map of tensors to files, got none");
  std::set<std::string> names;
  for (const auto& [tensor, file] : map->items()) {
    const bool beside =
        file.is_string() && fs::path(file.get<std::string>()).filename() == file.get<std::string>();
    TORCH_CHECK(beside, "'", index, "': tensor '", tensor,
                "': expected the name of a file beside the index, got ", file.dump());
    names.insert(file.get<std::string>());
  }
  std::vector<std::string> paths;
  for (const auto& name : names) paths.push_back((fs::path(index).parent_path() / name).string());
  return paths;
}

Files open_files(const std::string& path, const lightlora::SafetensorsOptions& options) {
  const auto paths = ends_with(path, ".json") ? shards_of(path) : std::vector<std::string>{path};
  Files files;
  for (const auto& each : paths) {
    TORCH_CHECK(limits::exists(each), "'", each, "': expected a file of weights, got none; hint: ",
                paths.size() > 1 ? "an unfinished download of a model in several files?"
                                 : "is the path right?");
    files.push_back(lightlora::open_tensors(each, options));
  }
  return files;
}

std::map<std::string, Source> sources_of(const Files& files, const RenameTensor& rename) {
  std::map<std::string, Source> sources;
  for (const auto& file : files) {
    for (const auto& info : file->tensors()) {
      const std::string name = rename ? rename(info.name) : info.name;
      if (name.empty()) continue;
      const bool is_new = sources.emplace(name, Source{file.get(), &info}).second;
      TORCH_CHECK(is_new, "'", file->path(), "': expected each tensor once, got '", info.name,
                  "' a second time as '", name, "'; hint: a file written with two naming schemes?");
    }
  }
  return sources;
}

std::map<std::string, torch::Tensor> targets_of(const torch::nn::Module& module) {
  std::map<std::string, torch::Tensor> targets;
  for (const auto& item : module.named_parameters()) targets.emplace(item.key(), item.value());
  for (const auto& item : module.named_buffers()) targets.emplace(item.key(), item.value());
  return targets;
}

// All names on both sides agree, or an error lists those that do not.
void check_names(const std::map<std::string, torch::Tensor>& targets,
                 const std::map<std::string, Source>& sources, const std::string& path) {
  std::vector<std::string> missing, unknown;
  for (const auto& [name, target] : targets) {
    if (!sources.count(name)) missing.push_back(name);
  }
  for (const auto& [name, source] : sources) {
    // A buffer of constants that older transformers wrote.
    const bool constant = name == "position_ids" || ends_with(name, ".position_ids");
    if (!targets.count(name) && !constant) unknown.push_back(name);
  }
  if (missing.empty() && unknown.empty()) return;
  std::string got;
  if (!missing.empty()) got += list_names(missing) + " missing";
  if (!unknown.empty()) got += (got.empty() ? "" : " and ") + list_names(unknown) + " unknown";
  TORCH_CHECK(false, "'", path, "': expected the model's ", targets.size(), " tensors, got ", got,
              "; hint: config.json beside the file describes another model");
}

// A matrix may also lie in the file as the kernel of a 1x1 convolution, which it was in old models.
bool same_shape(at::IntArrayRef target, at::IntArrayRef source) {
  return target.size() <= source.size() && target == source.slice(0, target.size()) &&
         std::all_of(source.begin() + static_cast<std::ptrdiff_t>(target.size()), source.end(),
                     [](int64_t size) { return size == 1; });
}

void check_shapes(const std::map<std::string, torch::Tensor>& targets,
                  const std::map<std::string, Source>& sources) {
  for (const auto& [name, target] : targets) {
    const Source& source = sources.at(name);
    TORCH_CHECK(same_shape(target.sizes(), source.info->shape), "'", source.file->path(),
                "': tensor '", source.info->name, "': expected shape ", target.sizes(), ", got ",
                at::IntArrayRef(source.info->shape),
                "; hint: config.json beside the file describes another model");
    TORCH_CHECK(
        at::isFloatingType(source.info->dtype) == target.is_floating_point(), "'",
        source.file->path(), "': tensor '", source.info->name, "': expected ",
        target.dtype().name(), ", got ", source.info->dtype_name,
        "; hint: a quantised model of another kind than bitsandbytes' or GGUF? Use its fp16, ",
        "bf16 or fp32 files");
  }
}

std::atomic<bool> weights_are_skipped{false};

// Kernels for random initialisation that leave the tensor as it is.
at::Tensor& leave_uniform(at::Tensor& tensor, double, double, std::optional<at::Generator>) {
  return tensor;
}
at::Tensor& leave_normal(at::Tensor& tensor, double, double, std::optional<at::Generator>) {
  return tensor;
}

// A dispatch key that nothing else here uses (GenericMode and GenericWrapper are the library's): where
// a thread includes it, the two operators that draw a module's first values come here, and every
// other operator is handed on, by LibTorch itself where it has this key.
constexpr auto skip_key = c10::DispatchKey::PreDispatch;

void register_skip_key() {
  using torch::Library;
  static Library pass(Library::IMPL, "_", skip_key, __FILE__, __LINE__);
  static Library skip(Library::IMPL, "aten", skip_key, __FILE__, __LINE__);
  static const bool once = [] {
    if (!c10::Dispatcher::singleton().hasBackendFallbackForDispatchKey(skip_key)) {
      pass.fallback(torch::CppFunction::makeFallthrough());
    }
    skip.impl("uniform_", leave_uniform);
    skip.impl("normal_", leave_normal);
    return true;
  }();
  static_cast<void>(once);
}

}  // namespace

WithoutWeights::WithoutWeights() { weights_are_skipped = true; }
WithoutWeights::~WithoutWeights() { weights_are_skipped = false; }

std::string find_weights(const std::string& folder, const std::string& stem) {
  if (weights_are_skipped) return folder;
  for (const auto* ending : {".safetensors", ".safetensors.index.json", ".fp16.safetensors",
                             ".safetensors.index.fp16.json", ".fp16.safetensors.index.json"}) {
    const fs::path path = fs::path(folder) / (stem + ending);
    if (fs::exists(path)) return path.string();
  }
  // Folders of before 2023 have pickled files only, which transformers calls by another name.
  const std::string pickled = stem == "model" ? "pytorch_model" : stem;
  for (const auto* ending : {".bin", ".fp16.bin", ".bin.index.json"}) {
    const fs::path path = fs::path(folder) / (pickled + ending);
    if (fs::exists(path)) return path.string();
  }
  TORCH_CHECK(
      fs::is_directory(folder), "'", folder,
      "': expected a folder with weights, got none; hint: is this a complete diffusers model?");
  TORCH_CHECK(false, "'", folder, "': expected ", stem,
              ".safetensors, got no weights; hint: a download without large files?");
}

void load_weights(torch::nn::Module& module, const std::string& path, const RenameTensor& rename,
                  const lightlora::SafetensorsOptions& options,
                  const BeforeFilling& before_filling) {
  if (weights_are_skipped) return;
  const Files files = open_files(path, options);
  const auto sources = sources_of(files, rename);
  auto targets = targets_of(module);
  check_names(targets, sources, path);
  check_shapes(targets, sources);
  if (before_filling) {
    before_filling([&](const std::string& name, lightlora::WeightFormat format) {
      const Source& source = sources.at(name);
      const at::Tensor& target = targets.at(name);
      const auto kept =
          source.file->load_quantized(source.info->name, format, target.scalar_type());
      if (kept.defined() && kept.sizes() == target.sizes()) return kept;
      return source.file->load(source.info->name).view(target.sizes()).to(target.scalar_type());
    });
  }
  // In the order of the bytes, so that a file that is not in memory yet is read from front to back.
  std::vector<std::pair<Source, torch::Tensor>> order;
  for (const auto& [name, target] : targets) {
    if (!lightlora::is_quantized(target)) order.emplace_back(sources.at(name), target);
  }
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::tie(a.first.file->path(), a.first.info->begin) <
           std::tie(b.first.file->path(), b.first.info->begin);
  });
  const at::NoGradGuard no_grad;
  for (auto& [source, target] : order) {
    target.copy_(source.file->load(source.info->name).view(target.sizes()));
    let_go_of_weights(/*written=*/true);
  }
}

struct UninitializedModules::Impl {
  explicit Impl(at::ScalarType dtype) : previous(c10::get_default_dtype()), include(skip_key) {
    c10::set_default_dtype(c10::scalarTypeToTypeMeta(dtype));
  }
  ~Impl() { c10::set_default_dtype(previous); }

  caffe2::TypeMeta previous;
  c10::impl::IncludeDispatchKeyGuard include;
};

UninitializedModules::UninitializedModules(at::ScalarType dtype) {
  TORCH_CHECK_VALUE(at::isFloatingType(dtype),
                    "sd::UninitializedModules: expected a floating dtype, got ", dtype);
  register_skip_key();
  impl_ = std::make_unique<Impl>(dtype);
}

UninitializedModules::~UninitializedModules() = default;

}  // namespace sd
