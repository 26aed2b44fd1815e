// SPDX-License-Identifier: Apache-2.0
// What the stages of pretraining are made of: how weights are kept and stepped, where emoji lie.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "research/pretraining/dataset.h"
#include "research/pretraining/figures.h"
#include "research/pretraining/layout.h"
#include "research/pretraining/master_weights.h"
#include "research/pretraining/muon.h"
#include "research/pretraining/placing.h"
#include "support.h"

namespace {

using nlohmann::json;

}  // namespace

TEST_CASE("pretrain: a place is counted by the room that the size leaves", "[pretrain]") {
  using pretraining::SubjectSquare;
  CHECK(SubjectSquare{0.2, 0.2, 0.4}.place() == 0);
  CHECK(SubjectSquare{0.5, 0.5, 0.4}.place() == 4);
  CHECK(SubjectSquare{0.8, 0.5, 0.4}.place() == 5);
  CHECK(SubjectSquare{0.35, 0.65, 0.7}.place() == 6);
  at::Tensor picture = at::full({3, 64, 64}, -1.0f);
  CHECK(pretraining::subject_square(picture).side == 0);
  picture.slice(1, 40, 60).slice(2, 4, 14).fill_(0.5f);
  const auto square = pretraining::subject_square(picture);
  CHECK(std::abs(square.side - 20.0 / 64) < 1e-6);  // the longer side
  CHECK(std::abs(square.x - 9.0 / 64) < 1e-6);      // the middle of 4 and 14
  CHECK(std::abs(square.y - 50.0 / 64) < 1e-6);     // the middle of 40 and 60
}

TEST_CASE("pretrain: figures become the rows of the model's card", "[pretrain]") {
  json figures = {{"vocabulary", 64}, {"psnr_unseen", 32.84}, {"unseen_pictures", 256}};
  figures["model"]["named_emoji_is_nearest"] = 61.0 / 64;
  figures["model"]["mean_cosine"] = 0.9614;
  figures["training_pictures"]["mean_cosine"] = 0.983;
  figures["words"]["place_as_asked"] = 1.0;
  const auto card = pretraining::card_of(figures);
  for (const char* row : {"| named emoji is the nearest of the 64 | 95.3% | - | - |\n",
                          "| mean cosine with the named emoji | 0.961 | 0.983 | - |\n",
                          "| place as asked | 100.0% | - | - |\n",
                          "\nAutoencoder on emoji that it has never seen: 32.8 dB PSNR (256 "}) {
    CHECK_THAT(card, ContainsSubstring(row));
  }
}

TEST_CASE("pretrain: pictures of a subject do not depend on what captions say", "[pretrain]") {
  const pretraining::EmojiSet one{
      at::full({1, 4, 40, 40}, 255, at::kByte), {"box"}, {pretraining::Role::kSubject}};
  const json layout = {{"scale", {0.5, 0.9}}};
  json wordy = layout;
  wordy.update({{"size_word", "large"}, {"size_said", 0.25}});
  std::vector<at::Tensor> pictures;
  for (const auto& only : {layout, wordy}) {
    const json options = {{"size", 32}, {"seed", 1}, {"layouts", json::array({only})}};
    pretraining::Composer composer(one, {0}, options);
    std::mt19937_64 random(7);
    for (int i = 0; i < 3; ++i) pictures.push_back(composer.draw(0, i, random, 64));
  }
  for (size_t i = 0; i < 3; ++i) CHECK(at::equal(pictures[i], pictures[i + 3]));
}

TEST_CASE("pretrain: layouts that make no sense are refused", "[pretrain]") {
  const json upside_down = {{"layouts", {{{"scale", {0.9, 0.5}}}}}};
  CHECK_THROWS_WITH(pretraining::read_layouts(upside_down), ContainsSubstring("scale to rise"));
  const json none = {{"layouts", json::array()}};
  CHECK_THROWS_WITH(pretraining::read_layouts(none), ContainsSubstring("got none"));
  CHECK(pretraining::read_layouts({{"scale", {0.5, 0.9}}}).size() == 1);
}

TEST_CASE("pretrain: weights in bf16 follow fp32 values, which keep what bf16 would lose",
          "[pretrain]") {
  torch::manual_seed(2);
  torch::nn::Linear layer(16, 8);
  layer->bias.requires_grad_(false);
  const auto start = layer->weight.detach().clone(), bias = layer->bias.detach().clone();
  pretraining::MasterWeights weights({{*layer, "layer."}}, at::kBFloat16,
                                     {{}, 0.99, 0.0, /*ema_decay=*/0.5});
  CHECK(layer->weight.scalar_type() == at::kBFloat16);
  at::Tensor average;  // diffusers' EMAModel: the first values as they are, then slowly more of it
  for (int64_t step = 0; step < 10; ++step) {
    weights.bank().zero_gradients();
    (layer->weight.to(at::kFloat) * at::sign(start)).sum().backward();
    weights.take_gradients();
    CHECK_FALSE(layer->weight.grad().defined());
    weights.step(/*learning_rate=*/1e-5);
    const auto now = weights.bank().values().view({8, 16}).clone();
    const double n = static_cast<double>(step), decay = std::min(0.5, (1 + n) / (10 + n));
    average = step == 0 ? now : decay * average + (1 - decay) * now;
  }
  // Ten steps of Adam's size against the sign, each a tenth of a bf16 step or less.
  const auto averages = weights.averages("layer.");
  CHECK(close(weights.bank().values().view({8, 16}), start - 1e-4 * at::sign(start), 1e-6));
  CHECK(at::equal(layer->weight.detach(), weights.bank().values().view({8, 16}).to(at::kBFloat16)));
  CHECK(at::equal(averages.at("bias"), bias));
  CHECK(close(averages.at("weight"), average, 1e-7));
  CHECK(close(averages.at("weight"), start - 9.05e-5 * at::sign(start), 1e-6));
  weights.use_averages();
  CHECK(at::equal(layer->weight.detach(), averages.at("weight").to(at::kBFloat16)));
}

TEST_CASE("pretrain: Muon moves a matrix along its orthogonalised momentum", "[pretrain]") {
  torch::manual_seed(3);
  const auto matrix = at::randn({4, 6}), kernel = at::randn({3, 2, 2, 2});
  training::ParameterBank bank(std::vector<at::Tensor>{matrix.clone(), kernel.clone()});
  pretraining::Muon muon(bank.slices()[0], /*decay=*/0.1, at::kFloat);
  const auto gradients = at::randn_like(bank.gradients());
  muon.step(bank.values(), gradients, /*learning_rate=*/0.01);
  const auto expected = [&](const at::Tensor& start, int64_t from, int64_t rows, int64_t columns) {
    const auto gradient = gradients.narrow(0, from, rows * columns).view({rows, columns});
    const double size = 0.2 * std::sqrt(static_cast<double>(std::max(rows, columns)));
    return start.reshape({rows, columns}) * (1 - 0.01 * 0.1) -
           0.01 * size * pretraining::orthogonalized(1.95 * gradient, at::kFloat);
  };
  CHECK(close(bank.values().narrow(0, 0, 24).view({4, 6}), expected(matrix, 0, 4, 6), 1e-6));
  CHECK(close(bank.values().narrow(0, 24, 24).view({3, 8}), expected(kernel, 24, 3, 8), 1e-6));
}

TEST_CASE("pretrain: Muon's step is nearly orthogonal", "[pretrain]") {
  torch::manual_seed(1);
  // Singular values from 1 to 0.03, which fewer than five steps would leave apart.
  const auto uneven =
      at::logspace(0, -1.5, 6).unsqueeze(1) * std::get<0>(at::linalg_qr(at::randn({20, 6}))).t();
  for (const auto& matrix : {uneven, uneven.t() * 1e-3}) {
    const auto values = at::linalg_svdvals(pretraining::orthogonalized(matrix, at::kFloat));
    CHECK(values.min().item<double>() > 0.6);
    CHECK(values.max().item<double>() < 1.25);
  }
  CHECK(pretraining::orthogonalized(at::zeros({3, 4}), at::kBFloat16).abs().max().item<float>() ==
        0);
}

TEST_CASE("pretrain: Muon's steps by the small square are those by the whole matrix",
          "[pretrain]") {
  torch::manual_seed(2);
  const auto exact = [](const at::Tensor& matrix) {
    at::Tensor x = matrix.to(at::kDouble);
    x = x / (x.norm() + 1e-7);
    for (int i = 0; i < 5; ++i) {
      const auto square = x.mm(x.t());
      x = 3.4445 * x + (-4.7750 * square + 2.0315 * square.mm(square)).mm(x);
    }
    return x;
  };
  const auto basis = [](int64_t rows, int64_t columns) {
    return std::get<0>(at::linalg_qr(at::randn({rows, columns})));
  };
  const auto uneven = basis(64, 64).mm(at::logspace(0, -6, 64).diag()).mm(basis(600, 64).t());
  for (const auto& matrix : {at::randn({24, 300}), at::randn({64, 130}), uneven,
                             at::randn({40, 3}).mm(at::randn({3, 400}))}) {
    CAPTURE(matrix.sizes());
    // Singular values down to nothing, whose squares fp32 loses; seen: 3e-4.
    CHECK(close(pretraining::orthogonalized(matrix, at::kFloat), exact(matrix), 1e-3));
    CHECK(close(pretraining::orthogonalized(matrix.t(), at::kFloat), exact(matrix).t(), 1e-3));
    // By the whole matrix in bf16 the last two are off by 0.2 and 0.8.
    if (matrix.size(1) > 5 * matrix.size(0)) {
      CHECK(close(pretraining::orthogonalized(matrix, at::kBFloat16), exact(matrix), 1e-3));
    }
  }
}
