// SPDX-License-Identifier: Apache-2.0
// Models that use their weights in many ways: each is adapted as its merged weight would be, or
// named in an error. And what must not be adapted is not.
#include <lightlora/patch.h>
#include <lightlora/train.h>
#include <torch/csrc/jit/api/module.h>

#include <functional>
#include <thread>

#include "support.h"

using namespace lightlora;
using torch::Tensor;
namespace nn = torch::nn;

namespace {

constexpr double kDouble = 1e-10;  // two ways of one result in double

// One layer called "layer", and what the model does with it.
template <typename Layer>
struct OneLayer : nn::Module {
  OneLayer(Layer from, std::function<Tensor(Layer&)> call_)
      : layer(register_module("layer", std::move(from))), call(std::move(call_)) {
    to(torch::kDouble);
    eval();
  }
  Tensor forward() { return call(layer); }
  Layer layer;
  std::function<Tensor(Layer&)> call;
};

void randomise(const Patched& lora) {
  torch::NoGradGuard no_grad;
  for (auto& parameter : lora->parameters()) parameter.normal_(0, 0.5);
}

// Adapted means: as the merged model, unlike the base, with the gradients of a bound weight's sum.
template <typename Layer>
void check_adapted(const std::string& name, Layer layer, std::function<Tensor(Layer&)> call,
                   const std::string& target = "layer") {
  INFO(name);
  torch::manual_seed(1);
  OneLayer<Layer> model(layer, std::move(call));
  const auto lora = patch<ClassicLoRA>(model, LoRAOptions(2).network_alpha(3), {target});
  randomise(lora);
  const Tensor base = model.forward(), adapted = lora(model);
  CHECK_FALSE(close(adapted, base, 1e-3));
  if (adapted.requires_grad()) {
    adapted.square().sum().backward();
    for (const auto& parameter : lora->parameters()) {
      CHECK(parameter.grad().norm().template item<double>() > 0);
    }
    for (const auto& parameter : model.parameters()) CHECK_FALSE(parameter.grad().defined());
  }
  lora->merge();
  CHECK(close(model.forward(), adapted, kDouble));
  lora->unmerge();
  CHECK(torch::equal(model.forward(), base));
}

template <typename Layer>
void check_named(const std::string& name, Layer layer, std::function<Tensor(Layer&)> call) {
  INFO(name);
  torch::manual_seed(1);
  OneLayer<Layer> model(layer, std::move(call));
  const auto lora = patch<ClassicLoRA>(model, LoRAOptions(2), {"layer"});
  randomise(lora);
  CHECK(lora->unreached() == std::vector<std::string>{"layer"});
  CHECK_THROWS_WITH(lora(model),
                    ContainsSubstring("'layer': expected every adapted weight to come to an "
                                      "operator of its layer"));
  const Tensor base = model.forward();
  lora->allow_unreached({"layer"});
  CHECK(torch::equal(lora(model), base));
  // Bound, it is adapted all the same.
  lora->bind_weights({"layer"});
  const Tensor bound = lora(model);
  CHECK_FALSE(close(bound, base, 1e-3));
  lora->merge();
  CHECK(close(model.forward(), bound, kDouble));
}

Tensor numbers(std::vector<int64_t> sizes) {
  torch::manual_seed(2);
  return torch::randn(sizes, torch::kDouble);
}

nn::Linear linear(bool bias = true) { return nn::Linear(nn::LinearOptions(8, 6).bias(bias)); }
using OfLinear = std::function<Tensor(nn::Linear&)>;

}  // namespace

TEST_CASE("thirty ways to use a Linear's weight: adapted", "[interception]") {
  const Tensor x = numbers({4, 8}), y = numbers({4, 6}), deep = numbers({2, 3, 8});
  const std::pair<const char*, OfLinear> ways[] = {
      {"forward", [=](auto& l) { return l(x); }},
      {"forward of three dimensions", [=](auto& l) { return l(deep); }},
      {"forward of one dimension", [=](auto& l) { return l(x[0]); }},
      {"twice in one call", [=](auto& l) { return l(x) + 2 * l(x * x); }},
      {"at::linear", [=](auto& l) { return at::linear(x, l->weight, l->bias); }},
      {"matmul with t()", [=](auto& l) { return x.matmul(l->weight.t()); }},
      {"matmul with transpose", [=](auto& l) { return deep.matmul(l->weight.transpose(0, 1)); }},
      {"mm", [=](auto& l) { return x.mm(l->weight.t()); }},
      {"addmm", [=](auto& l) { return at::addmm(l->bias, x, l->weight.t()); }},
      {"addmm with factors", [=](auto& l) { return at::addmm(l->bias, x, l->weight.t(), 2, 3); }},
      {"addmm of a matrix", [=](auto& l) { return at::addmm(y, x, l->weight.t()); }},
      {"the weight on the left", [=](auto& l) { return l->weight.matmul(x.t()).t(); }},
      {"the weight on the left of mm", [=](auto& l) { return l->weight.mm(x.t()); }},
      {"mv", [=](auto& l) { return l->weight.mv(x[0]); }},
      {"matmul with a vector", [=](auto& l) { return l->weight.matmul(x[0]); }},
      {"the weight on the left of a stack",
       [=](auto& l) { return l->weight.matmul(deep.transpose(1, 2)); }},
      {"backwards, as a tied decoder", [=](auto& l) { return y.matmul(l->weight); }},
      {"backwards through linear", [=](auto& l) { return at::linear(y, l->weight.t()); }},
      {"backwards through mm", [=](auto& l) { return y.mm(l->weight); }},
      {"einsum", [=](auto& l) { return at::einsum("bi,oi->bo", {x, l->weight}); }},
      {"einsum, the weight first",
       [=](auto& l) { return at::einsum("oi,bi->bo", {l->weight, x}); }},
      {"tensordot", [=](auto& l) { return at::tensordot(x, l->weight, {1}, {1}); }},
      {"bmm with a batch of one",
       [=](auto& l) { return x.unsqueeze(0).bmm(l->weight.t().unsqueeze(0)); }},
      {"some rows", [=](auto& l) { return at::linear(x, l->weight.narrow(0, 1, 3)); }},
      {"halves",
       [=](auto& l) {
         const auto halves = l->weight.chunk(2);
         return at::linear(x, halves[0]) * at::linear(x, halves[1]);
       }},
      {"a detached alias", [=](auto& l) { return at::linear(x, l->weight.detach(), l->bias); }},
      {"a view of the same shape", [=](auto& l) { return at::linear(x, l->weight.view({6, 8})); }},
      {"the functional form",
       [=](auto& l) { return nn::functional::linear(x, l->weight, l->bias); }},
      {"a checkpointed call",
       [=](auto& l) {
         return recompute([&](const std::vector<Tensor>& in) { return l(in[0]); }, {x});
       }},
      {"in place afterwards", [=](auto& l) { return l(x).add_(1).relu_(); }}};
  for (const auto& [name, way] : ways) check_adapted<nn::Linear>(name, linear(), way);
}

TEST_CASE("a Linear without a bias, and one without autograd: adapted", "[interception]") {
  const Tensor x = numbers({4, 8}), deep = numbers({2, 3, 8});
  check_adapted<nn::Linear>("without a bias", linear(false), [=](auto& l) { return l(deep); });
  check_adapted<nn::Linear>("with a bias that is not defined", linear(false),
                            [=](auto& l) { return at::linear(deep, l->weight, l->bias); });
  check_adapted<nn::Linear>("without autograd", linear(), [=](auto& l) {
    const torch::NoGradGuard no_grad;
    return l(x);
  });
}

TEST_CASE("ways to use a weight that no operator shows: named, and adapted when bound",
          "[interception]") {
  const Tensor x = numbers({4, 8});
  const std::pair<const char*, OfLinear> ways[] = {
      {"element by element", [=](auto& l) { return (x.unsqueeze(1) * l->weight).sum(-1); }},
      {"weight norm", [=](auto& l) { return at::linear(x, l->weight / l->weight.norm()); }},
      {"a copy", [=](auto& l) { return x.matmul(l->weight.t().contiguous()); }},
      {"a cast",
       [=](auto& l) { return x.to(torch::kFloat).matmul(l->weight.t().to(torch::kFloat)); }},
      {"columns",
       [=](auto& l) { return at::linear(x.narrow(1, 0, 4), l->weight.narrow(1, 0, 4)); }},
      {"addmv", [=](auto& l) { return at::addmv(l->bias, l->weight, x[0]); }},
      {"a distance", [=](auto& l) { return at::cdist(x, l->weight); }}};
  for (const auto& [name, way] : ways) check_named<nn::Linear>(name, linear(), way);
  const Tensor ids = torch::tensor({3, 1, 2});
  check_named<nn::Embedding>("rows by indexing", nn::Embedding(9, 6),
                             [=](auto& l) { return l->weight.index({ids}); });
  check_named<nn::Embedding>("rows by a product", nn::Embedding(9, 6), [=](auto& l) {
    return torch::one_hot(ids, 9).to(torch::kDouble).matmul(l->weight);
  });
}

TEST_CASE("ways to use other layers: adapted", "[interception]") {
  const Tensor picture = numbers({2, 4, 6, 5});
  const auto conv = [](nn::Conv2dOptions options) { return nn::Conv2d(options); };
  check_adapted<nn::Conv2d>(
      "reflection", conv(nn::Conv2dOptions(4, 6, 3).padding(1).padding_mode(torch::kReflect)),
      [=](auto& l) { return l(picture); });
  check_adapted<nn::Conv2d>("padding by name",
                            conv(nn::Conv2dOptions(4, 6, 3).padding(torch::kSame)),
                            [=](auto& l) { return l(picture); });
  check_adapted<nn::Conv2d>("without a batch", conv(nn::Conv2dOptions(4, 6, 3)),
                            [=](auto& l) { return l(picture[0]); });
  check_adapted<nn::Conv2d>("each channel alone", conv(nn::Conv2dOptions(4, 8, 3).groups(4)),
                            [=](auto& l) { return l(picture); });
  check_adapted<nn::Conv2d>("at::convolution", conv(nn::Conv2dOptions(4, 6, 3)), [=](auto& l) {
    return at::convolution(picture, l->weight, l->bias, {1, 1}, {0, 0}, {1, 1}, false, {0, 0}, 1);
  });
  check_adapted<nn::Conv2d>(
      "one pixel as a Linear", conv(nn::Conv2dOptions(4, 6, 1)), [=](auto& l) {
        return at::linear(picture.permute({0, 2, 3, 1}), l->weight.flatten(1), l->bias);
      });
  check_adapted<nn::Conv2d>("unfolded", conv(nn::Conv2dOptions(4, 6, 3)), [=](auto& l) {
    return l->weight.flatten(1).matmul(at::im2col(picture, {3, 3}, {1, 1}, {0, 0}, {1, 1}));
  });
  check_adapted<nn::ConvTranspose2d>(
      "transposed", nn::ConvTranspose2d(nn::ConvTranspose2dOptions(4, 6, 3).stride(2).groups(2)),
      [=](auto& l) { return l(picture); });
  check_adapted<nn::Bilinear>("bilinear", nn::Bilinear(4, 5, 6),
                              [=](auto& l) { return l(numbers({3, 4}), numbers({3, 5})); });
  const Tensor ids = torch::tensor({{3, 1}, {2, 3}});
  check_adapted<nn::Embedding>("embedding", nn::Embedding(9, 6), [=](auto& l) { return l(ids); });
  check_adapted<nn::Embedding>("index_select", nn::Embedding(9, 6),
                               [=](auto& l) { return l->weight.index_select(0, ids.flatten()); });
  for (const auto mode : {0, 1, 2}) {
    check_adapted<nn::EmbeddingBag>(
        "bags",
        nn::EmbeddingBag(
            nn::EmbeddingBagOptions(9, 6).mode(mode == 0   ? nn::EmbeddingBagMode(torch::kSum)
                                               : mode == 1 ? nn::EmbeddingBagMode(torch::kMean)
                                                           : nn::EmbeddingBagMode(torch::kMax))),
        [=](auto& l) { return l(ids.flatten(), torch::tensor({0, 3})); });
  }
}

TEST_CASE("attention and recurrent layers are adapted whichever operator they take",
          "[interception]") {
  const Tensor x = numbers({5, 2, 8}), z = numbers({3, 2, 8});
  for (const char* part : {"layer.in_proj", "layer.out_proj"}) {
    const nn::MultiheadAttention attention(nn::MultiheadAttentionOptions(8, 2));
    using Call = std::function<Tensor(nn::MultiheadAttention&)>;
    const std::pair<const char*, Call> ways[] = {
        {"self", [=](auto& l) { return std::get<0>(l(x, x, x)); }},
        {"cross", [=](auto& l) { return std::get<0>(l(x, z, z)); }},
        {"three inputs", [=](auto& l) { return std::get<0>(l(x, z, z * 2)); }},
        {"in one operator", [=](auto& l) {
           const torch::NoGradGuard no_grad;
           const Tensor q = x.transpose(0, 1).contiguous();
           return std::get<0>(at::_native_multi_head_attention(q, q, q, 8, 2, l->in_proj_weight,
                                                               l->in_proj_bias, l->out_proj->weight,
                                                               l->out_proj->bias, {}, false));
         }}};
    for (const auto& [name, way] : ways) {
      check_adapted<nn::MultiheadAttention>(name, attention, way, part);
    }
  }
  check_adapted<nn::TransformerEncoderLayer>(
      "an encoder layer",
      nn::TransformerEncoderLayer(nn::TransformerEncoderLayerOptions(8, 2).dim_feedforward(12)),
      [=](auto& l) { return l(x); }, "linear1");
  for (const char* matrix : {"layer.weight_ih_l0", "layer.weight_hh_l1"}) {
    check_adapted<nn::LSTM>(
        "LSTM", nn::LSTM(nn::LSTMOptions(8, 6).num_layers(2)),
        [=](auto& l) { return std::get<0>(l(x)); }, matrix);
    check_adapted<nn::GRU>(
        "GRU", nn::GRU(nn::GRUOptions(8, 6).num_layers(2)),
        [=](auto& l) { return std::get<0>(l(x)); }, matrix);
    check_adapted<nn::RNN>(
        "RNN", nn::RNN(nn::RNNOptions(8, 6).num_layers(2)),
        [=](auto& l) { return std::get<0>(l(x)); }, matrix);
  }
  for (const char* matrix : {"layer.weight_ih", "layer.weight_hh"}) {
    check_adapted<nn::GRUCell>(
        "GRUCell", nn::GRUCell(8, 6), [=](auto& l) { return l(x[0], numbers({2, 6})); }, matrix);
    check_adapted<nn::LSTMCell>(
        "LSTMCell", nn::LSTMCell(8, 6),
        [=](auto& l) {
          return std::get<0>(l(x[0], std::make_tuple(numbers({2, 6}), numbers({2, 6}))));
        },
        matrix);
  }
}

TEST_CASE("nothing else is adapted: other threads, other models, what LibTorch derives",
          "[interception]") {
  torch::manual_seed(1);
  nn::Sequential model(nn::Linear(8, 8), nn::Linear(8, 8)), other(nn::Linear(8, 8));
  model->to(torch::kDouble);
  other->to(torch::kDouble);
  const Tensor x = numbers({4, 8}), base = model->forward(x), theirs = other->forward(x);
  const auto lora = patch<ClassicLoRA>(*model, 2, Targets::all());
  randomise(lora);
  const auto on = lora->activate();
  const Tensor adapted = model->forward(x);
  CHECK_FALSE(close(adapted, base, 1e-3));
  CHECK(torch::equal(other->forward(x), theirs));
  Tensor elsewhere;
  std::thread([&] { elsewhere = model->forward(x); }).join();
  CHECK(torch::equal(elsewhere, base));
  // A thread that takes the state along is adapted; one with the key alone is not, and lives.
  const at::ThreadLocalState state;
  std::thread([&] {
    const at::ThreadLocalStateGuard guard(state);
    elsewhere = model->forward(x);
  }).join();
  CHECK(close(elsewhere, adapted, kDouble));
  std::thread([&] {
    const c10::impl::IncludeDispatchKeyGuard key(lightlora::detail::kModeKey);
    elsewhere = model->forward(x);
  }).join();
  CHECK(torch::equal(elsewhere, base));
}

TEST_CASE("activations nest, end in any order and choose sets of their own", "[interception]") {
  torch::manual_seed(1);
  nn::Sequential model(nn::Linear(8, 6));
  model->to(torch::kDouble);
  const Tensor x = numbers({4, 8}), base = model->forward(x);
  const auto lora = patch<ClassicLoRA>(*model, 2, {"0"}, "one");
  lora->add("two", "classic", LoRAOptions(3), {"0"});
  randomise(lora);
  const auto only = [&](const std::map<std::string, double>& weights) {
    const auto on = lora->activate(weights);
    return model->forward(x);
  };
  const Tensor one = only({{"one", 1}}), two = only({{"two", 1}});
  std::optional<Activation> outer(lora->activate({{"one", 1}}));
  CHECK(close(model->forward(x), one, kDouble));
  CHECK(close(lora(model, x), one, kDouble));  // inside another one nothing changes
  std::optional<Activation> inner(lora->activate({{"two", 1}}));
  CHECK(close(model->forward(x), two, kDouble));
  CHECK(torch::equal(only({}), base));
  outer.reset();
  CHECK(close(model->forward(x), two, kDouble));
  inner.reset();
  CHECK(torch::equal(model->forward(x), base));
  CHECK_FALSE(lora->is_active());
  CHECK_THROWS_WITH(lora->activate({{"three", 1}}),
                    ContainsSubstring("('one', 'two'), got 'three'"));
}

TEST_CASE("a layer that a call leaves out is named once it never came, unless that is expected",
          "[interception]") {
  struct Branches : nn::Module {
    Branches() {
      a = register_module("a", nn::Linear(8, 8));
      b = register_module("b", nn::Linear(8, 8));
    }
    Tensor forward(const Tensor& x, bool both) { return both ? b(a(x)) : a(x); }
    nn::Linear a{nullptr}, b{nullptr};
  } model;
  const Tensor x = torch::randn({2, 8});
  const auto lora = patch<ClassicLoRA>(model, 2, Targets::all());
  CHECK_NOTHROW(lora(*model.a, x));  // a part of the model answers for itself
  CHECK_THROWS_WITH(lora(model, x, false), ContainsSubstring("'b': expected every adapted weight"));
  lora->allow_unreached({"b"});
  CHECK_NOTHROW(lora(model, x, false));
  CHECK(lora->unreached().empty());
  CHECK_THROWS_WITH(lora->allow_unreached({"c"}), ContainsSubstring("'c': expected the path"));
  const auto again = [&] {
    lora->remove();
    lora->add("default", "classic", LoRAOptions(2), Targets::all());
  };
  again();
  CHECK_NOTHROW(lora(model, x, true));
  CHECK_NOTHROW(lora(model, x, false));  // it has been seen to work
}

TEST_CASE("rows: what has no rows, or not as many as the index, is refused", "[interception]") {
  nn::Sequential model(nn::Linear(8, 6));
  const auto lora = patch<ClassicLoRA>(*model, 2, {"0"});
  const auto activate = [&](const Tensor& index) {
    return lora->activate_rows({"default"}, index);
  };
  CHECK_THROWS_WITH(activate(torch::tensor({0, 1}, torch::kLong)),
                    ContainsSubstring("expected an index from -1 to 0, got 0 to 1"));
  CHECK_THROWS_WITH(activate(torch::tensor({0.5})), ContainsSubstring("one int64 for each row"));
  const auto on = activate(torch::tensor({0, -1}, torch::kLong));
  CHECK_THROWS_WITH(model->forward(torch::randn({3, 8})),
                    ContainsSubstring("'0': expected 2 rows first"));
  nn::Sequential recurrent(nn::GRU(8, 6));
  const auto gru = patch<ClassicLoRA>(*recurrent, 2, Targets::all());
  CHECK_THROWS_WITH(gru->activate_rows({"default"}, torch::tensor({0}, torch::kLong)),
                    ContainsSubstring("adapters chosen for each row cannot be combined with GRU"));
  // LibTorch's attention projects its output with the sequence first, also one as long as the batch.
  nn::Sequential attention(nn::MultiheadAttention(8, 2));
  const auto heads = patch<ClassicLoRA>(*attention, 2, {"0.out_proj"});
  CHECK_THROWS_WITH(heads->activate_rows({"default"}, torch::tensor({0, -1}, torch::kLong)),
                    ContainsSubstring("'0.out_proj': adapters chosen for each row cannot be "
                                      "combined with MultiheadAttention"));
}
