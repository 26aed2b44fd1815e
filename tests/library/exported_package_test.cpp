// SPDX-License-Identifier: Apache-2.0
// Packages of AOTInductor. They hold compiled code, so library/aotinductor_test.py makes them anew
// and runs these cases over them.
#include <lightlora/lightlora.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/import.h>

#include <cstdlib>

#include "paths.h"
#include "support.h"

using namespace lightlora;
using torch::Tensor;
using torch::inductor::AOTIModelPackageLoader;

namespace {

const std::string kModel = LIGHTLORA_TEST_DATA "/torchscript/";

std::string package(const std::string& name) {
  const char* folder = std::getenv("LIGHTLORA_PACKAGES");
  if (!folder) WARN("no packages here: this case checks nothing; aotinductor_test.py runs it");
  return folder ? std::string(folder) + "/" + name : "";
}

}  // namespace

TEST_CASE("package: PEFT's adapters are merged, switched, added up, and taken out to the bit",
          "[aotinductor]") {
  const std::string path = package("net.pt2");
  if (path.empty()) return;
  const torch::NoGradGuard no_grad;
  const auto expected = SafetensorsFile(kModel + "expected.safetensors").load_all();
  const AdapterState one = read_state(kModel + "one"), two = read_state(kModel + "two");
  AOTIModelPackageLoader model(path);
  const auto run = [&] { return model.run({expected.at("ids")})[0].clone(); };
  const Tensor base = run();
  CHECK(close(base, expected.at("base"), 1e-5));

  auto lora = patch(model, one, "one");
  lora.add("two", two);
  CHECK(torch::equal(run(), base));  // nothing joins in by itself
  for (const std::string name : {"one", "two", "one"}) {
    lora.merge({{name, 1.0}});
    CHECK(close(run(), expected.at(name), 1e-5));
    CHECK_FALSE(close(run(), base, 1e-2));
  }
  lora.merge({{"one", 0.5}, {"two", -2.0}});
  CHECK(lora.merged() == std::map<std::string, double>{{"one", 0.5}, {"two", -2.0}});
  auto script = torch::jit::load(kModel + "scripted.pt");
  const auto peer = patch(script, one, "one");
  peer->add("two", two);
  peer->set_active({{"one", 0.5}, {"two", -2.0}});
  const std::vector<torch::jit::IValue> inputs{expected.at("ids")};
  CHECK(close(run(), peer(script, inputs).toTensor(), 1e-5));
  lora.unmerge();
  CHECK(torch::equal(run(), base));
  CHECK(lora.merged().empty());

  CHECK_THROWS_WITH(lora.merge({{"three", 1.0}}), ContainsSubstring("got 'three'"));
  CHECK_THROWS_WITH(lora.add("two", two), ContainsSubstring("got 'two', which there is already"));
  AdapterState other = two;
  other[0].layer.name = "head";
  CHECK_THROWS_WITH(lora.add("other", other),
                    ContainsSubstring("'head': expected an adapter for 10 -> 6"));
  lora.merge({{"one", 1.0}});
  CHECK(close(run(), expected.at("one"), 1e-5));
}

TEST_CASE("package: a layer whose weight was folded away is named", "[aotinductor]") {
  const std::string path = package("frozen.pt2");
  if (path.empty()) return;
  AOTIModelPackageLoader model(path);
  CHECK_THROWS_WITH(patch(model, read_state(kModel + "two")),
                    ContainsSubstring("'k_proj': expected a weight of this layer") ||
                        ContainsSubstring("'q_proj': expected a weight of this layer"));
}
