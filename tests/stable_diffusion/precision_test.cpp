// SPDX-License-Identifier: Apache-2.0
// Whole models in single and half precision against fp64 on the CPU, on the CPU, on the simulated
// GPU and, from scripts/gpu_check.sh, on a real one with each of LibTorch's kernels for attention.
#include <ATen/Context.h>
#include <lightlora/file_io.h>

#include <cstdio>
#include <functional>

#include "models/clip.h"
#include "models/unet.h"
#include "models/vae.h"
#include "models/weights.h"
#include "paths.h"
#include "pipeline/device.h"
#include "support.h"
#include "support/files/json_file.h"

namespace {

struct Precision {
  const char* name;
  at::ScalarType dtype;
  double forward, backward;  // limits: roundings that add up through a whole model
};

const Precision kPrecisions[] = {{"fp32", at::kFloat, 1e-5, 5e-5},
                                 {"bf16", at::kBFloat16, 5e-2, 2e-1},
                                 {"fp16", at::kHalf, 1e-2, 4e-2}};

at::Device test_device() {
  const char* name = std::getenv("LIGHTLORA_TEST_DEVICE");
  return name ? at::Device(name) : at::Device(at::kCPU);
}

// The kernels for attention, of which LibTorch may otherwise choose. What has none for fp32 says no.
struct Kernels {
  const char* name;
  bool flash, efficient, math, cudnn, fp32;

  void choose() const {
    auto& context = at::globalContext();
    context.setSDPUseFlash(flash);
    context.setSDPUseMemEfficient(efficient);
    context.setSDPUseMath(math);
    context.setSDPUseCuDNN(cudnn);
  }
};

const Kernels kUsual{"usual", true, true, true, false, true};
const Kernels kEach[] = {{"flash", true, false, false, false, false},
                         {"memory-efficient", false, true, false, false, true},
                         {"math", false, false, true, false, true},
                         {"cuDNN", false, false, false, true, false}};

std::string data(const std::string& name) { return std::string(LIGHTLORA_TEST_DATA) + "/" + name; }

// A model of tests/parity in one precision, the same in fp64, and its inputs.
template <typename Model>
struct Pair {
  Model own, exact;
  lightlora::TensorMap numbers;
  Precision precision;

  template <typename Make>
  Pair(const std::string& folder, const Precision& p, Make make)
      : own(make()),
        exact(make()),
        numbers(lightlora::SafetensorsFile(data(folder) + "/numbers.safetensors").load_all()),
        precision(p) {
    own->to(p.dtype);
    exact->to(p.dtype);
  }
  void move() {
    exact->to(at::kDouble);
    own->to(test_device());
    exact->eval();
    own->eval();
  }
  at::Tensor input(const std::string& key, bool of_exact) const {
    const auto& value = numbers.at(key);
    if (!value.is_floating_point()) return of_exact ? value : value.to(test_device());
    const auto rounded = value.to(precision.dtype);
    return of_exact ? rounded.to(at::kDouble) : rounded.to(test_device());
  }
};

void show(const std::string& what, const Precision& precision, const Kernels& kernels, double error,
          double limit) {
  std::printf("RESULT | %s, %s, %s attention | %.1e from fp64, limit %.0e\n", what.c_str(),
              precision.name, kernels.name, error, limit);
}

void compare(const std::string& what, const Precision& precision, const Kernels& kernels,
             const at::Tensor& got, const at::Tensor& expected, double limit) {
  INFO(what << " in " << precision.name << " with " << kernels.name << " attention");
  show(what, precision, kernels, relative_error(got, expected), limit);
  CHECK(close(got, expected, limit));
}

// A real GPU tells the kernels apart, and has not all of them for all sizes; gpu_check.sh asks for
// each by itself.
template <typename Work>
void with_each_kernel(const char* what, const Precision& precision, const Work& work) {
  kUsual.choose();
  work(kUsual);
  if (std::getenv("LIGHTLORA_EACH_KERNEL") == nullptr) return;
  for (const auto& kernels : kEach) {
    if (!kernels.fp32 && precision.dtype == at::kFloat) continue;
    kernels.choose();
    try {
      work(kernels);
    } catch (const c10::Error& error) {
      std::printf("RESULT | %s, %s, %s attention | none: %.60s\n", what, precision.name,
                  kernels.name, error.what_without_backtrace());
    }
  }
  kUsual.choose();
}

Pair<sd::UNet2DConditionModel> make_unet(const Precision& precision) {
  const auto path = data("unet_sd1/config.json");
  Pair<sd::UNet2DConditionModel> pair("unet_sd1", precision, [&] {
    return sd::UNet2DConditionModel(
        sd::UNet2DConditionModelOptions::from_json(sd::read_json_file(path), path));
  });
  for (auto* model : {&pair.own, &pair.exact}) {
    sd::load_weights(**model, data("unet_sd1/diffusion_pytorch_model.safetensors"));
  }
  pair.move();
  if (test_device().is_cuda()) pair.own->group_projections();
  return pair;
}

// The output, and the gradient of the sample.
std::pair<at::Tensor, at::Tensor> run_unet(Pair<sd::UNet2DConditionModel>& pair, bool exact) {
  auto sample = pair.input("sample", exact).requires_grad_(true);
  const auto output = (exact ? pair.exact : pair.own)(sample, pair.input("timesteps", exact),
                                                      pair.input("context", exact));
  output.backward(pair.input("weighting", exact));
  return {output, sample.grad()};
}

}  // namespace

TEST_CASE("precision: cuDNN's attention is off on a GPU until it was compared",
          "[precision][cuda]") {
  if (!test_device().is_cuda()) return;
  at::globalContext().setSDPUseCuDNN(true);
  CHECK(sd::pick_device("cuda").is_cuda());
  CHECK_FALSE(at::globalContext().userEnabledCuDNNSDP());
}

TEST_CASE("precision: the UNet has fp64's output and gradient", "[precision][cuda]") {
  for (const auto& precision : kPrecisions) {
    auto pair = make_unet(precision);
    const auto [output, gradient] = run_unet(pair, /*exact=*/true);
    with_each_kernel("UNet", precision, [&, &output = output, &gradient = gradient](auto& kernels) {
      const auto [got, got_gradient] = run_unet(pair, /*exact=*/false);
      compare("UNet", precision, kernels, got, output, precision.forward);
      compare("UNet's gradient", precision, kernels, got_gradient, gradient, precision.backward);
    });
  }
}

TEST_CASE("precision: the autoencoder has fp64's pictures and latents", "[precision][cuda]") {
  const at::NoGradGuard no_grad;
  const auto path = data("vae_normal/config.json");
  for (const auto& precision : kPrecisions) {
    Pair<sd::AutoencoderKL> pair("vae_normal", precision, [&] {
      return sd::AutoencoderKL(sd::AutoencoderKLOptions::from_json(sd::read_json_file(path), path));
    });
    for (auto* model : {&pair.own, &pair.exact}) {
      sd::load_weights(**model, data("vae_normal/diffusion_pytorch_model.safetensors"));
    }
    pair.move();
    const auto pictures = pair.exact->decode(pair.input("latents", true));
    const auto latents = pair.exact->encode(pair.input("pictures", true)).mean();
    with_each_kernel("VAE", precision, [&](auto& kernels) {
      compare("VAE's decoder", precision, kernels, pair.own->decode(pair.input("latents", false)),
              pictures, precision.forward);
      compare("VAE's encoder", precision, kernels,
              pair.own->encode(pair.input("pictures", false)).mean(), latents, precision.forward);
    });
  }
}

TEST_CASE("precision: the text encoder has fp64's states", "[precision][cuda]") {
  const at::NoGradGuard no_grad;
  const auto path = data("clip_sd1/config.json");
  for (const auto& precision : kPrecisions) {
    Pair<sd::CLIPTextModel> pair("clip_sd1", precision, [&] {
      return sd::CLIPTextModel(sd::CLIPTextModelOptions::from_json(sd::read_json_file(path), path));
    });
    for (auto* model : {&pair.own, &pair.exact}) {
      sd::load_weights(**model, data("clip_sd1/model.safetensors"),
                       sd::CLIPTextModelImpl::parameter_name);
    }
    pair.move();
    const auto states = pair.exact(pair.input("ids", true));
    with_each_kernel("text encoder", precision, [&](auto& kernels) {
      compare("text encoder", precision, kernels, pair.own(pair.input("ids", false)), states,
              precision.forward);
    });
  }
}
