// SPDX-License-Identifier: Apache-2.0
// The only file of the tests that includes Catch2: LibTorch defines a CHECK of its own, and the
// later definition wins without a warning.
#pragma once

#include <torch/torch.h>
#undef CHECK
#if __has_include(<catch2/catch_all.hpp>)  // Catch2 v3
#include <catch2/catch_all.hpp>
using Catch::Matchers::ContainsSubstring;
#else  // Catch2 v2
#include <catch2/catch.hpp>
inline auto ContainsSubstring(const std::string& text) { return Catch::Matchers::Contains(text); }
#endif

#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>

/// Relative L2 error |a - b| / |b|, computed in double on the CPU; |a| if b is zero.
/// Errors: c10::Error if the shapes differ. A NaN on either side gives NaN, so no tolerance accepts
/// it.
inline double relative_error(const at::Tensor& a, const at::Tensor& b) {
  TORCH_CHECK(a.sizes() == b.sizes(), "relative_error: expected shape ", b.sizes(), ", got ",
              a.sizes());
  const auto x = a.detach().to(at::kCPU, at::kDouble);
  const auto y = b.detach().to(at::kCPU, at::kDouble);
  const double difference = (x - y).norm().item<double>();
  const double reference = y.norm().item<double>();
  return reference > 0 ? difference / reference : difference;
}

/// Whether two tensors of equal shape agree within a relative L2 error. There is no default
/// tolerance: each call states one, and why.
inline bool close(const at::Tensor& a, const at::Tensor& b, double tolerance) {
  const double error = relative_error(a, b);
  UNSCOPED_INFO("relative error " << error << ", tolerance " << tolerance);
  return error <= tolerance;
}

/// A new empty folder that disappears with the object.
class ScratchFolder {
 public:
  ScratchFolder() {
    auto pattern = (std::filesystem::temp_directory_path() / "lightlora-XXXXXX").string();
    TORCH_CHECK(mkdtemp(pattern.data()) != nullptr, "'", pattern,
                "': expected a new folder, got none");
    path_ = pattern;
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  ~ScratchFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  const std::filesystem::path& path() const { return path_; }
  /// Path of a file inside the folder, as the text that the library's functions take.
  std::string file(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};
