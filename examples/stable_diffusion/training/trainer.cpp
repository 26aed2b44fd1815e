// SPDX-License-Identifier: Apache-2.0
#include "training/trainer.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include <cmath>
#include <sstream>
#include <utility>

#include "models/gradient_checkpointing.h"
#include "support/cli/fmt.h"
#include "training/phases.h"

namespace training {

using torch::Tensor;

namespace {

// A scale of 65536 reaches 1 after 16 halvings; what still overflows then is not the scale's fault.
constexpr int64_t kMostSkippedSteps = 25;
// Each recording keeps a batch's activations; aspect-ratio buckets beyond this run as they are.
constexpr std::size_t kMostRecordings = 8;

// Whether a training pass draws random numbers.
bool has_dropout(const TrainerParts& parts) {
  if (parts.unet->options.dropout() > 0) return true;
  for (const auto& adapted : parts.adapters) {
    for (const auto& adapter : adapted->adapters()) {
      if (lightlora::has_dropout(*adapter)) return true;
    }
  }
  return false;
}

std::string optimizer_prefix(std::size_t slice) { return fmt::format("optimizer.{}.", slice); }

}  // namespace

Trainer::Trainer(TrainerParts parts, LearningRate learning_rate, TrainerOptions options)
    : parts_(std::move(parts)),
      learning_rate_(std::move(learning_rate)),
      options_(std::move(options)),
      bank_(parts_.groups),
      ranks_(parts_.adapters, options_.total_steps, parts_.loss.num_train_timesteps()),
      scaler_(options_.scale_loss, bank_.values().device()),
      draws_(has_dropout(parts_)) {
  if (options_.cuda_graph && options_.gradient_checkpointing && draws_) {
    // Segments that are computed again restore the generator's state, which a recording may not.
    options_.cuda_graph = false;
    fmt::print(
        "notice: no CUDA graph, as gradient checkpointing with dropout cannot be recorded\n");
  }
  for (const auto& slice : bank_.slices()) {
    optimizers_.push_back(make_optimizer(options_.optimizer, slice));
  }
  loss_scale_ = scaler_.scale();
  if (options_.ema_decay) average_.emplace(bank_, *options_.ema_decay);
  parts_.unet->train();
  if (options_.batch_invariant) exact_sum_ = at::zeros_like(bank_.gradients(), torch::kDouble);
  const auto& group = options_.group;
  for (SampleSource* source : {&parts_.instance, parts_.prior ? &*parts_.prior : nullptr}) {
    if (source == nullptr || group.size() == 1) continue;
    group.require_same("the pictures to train on", source->latents().dataset().fingerprint());
    source->take_share(group.rank(), group.size());
  }
}

std::vector<lightlora::Activation> Trainer::activate() const {
  std::vector<lightlora::Activation> active;
  active.reserve(parts_.adapters.size());
  for (const auto& adapters : parts_.adapters) active.push_back(adapters->activate());
  return active;
}

Tensor Trainer::backward(SampleSource& source, int64_t index, double weight) {
  begin_phase("batch");
  if (options_.batch_invariant || ranks_.by_sample()) {
    return backward_by_sample(source, index, weight);
  }
  return backward(source.batch(index, parts_.loss), weight);
}

// The exact sum is divided by the number of samples in the end, other gradients here.
Tensor Trainer::backward_by_sample(SampleSource& source, int64_t index, double weight) {
  const TrainingBatch batch = source.batch(index, parts_.loss);
  const bool exact = options_.batch_invariant;
  const double share = exact ? weight : weight / static_cast<double>(batch.samples.size());
  Tensor loss;
  for (size_t i = 0; i < batch.samples.size(); ++i) {
    if (exact) seed_dropout(source.first_sample(index) + static_cast<int64_t>(i));
    ranks_.begin(batch.samples[i].timestep);
    const Tensor own =
        backward({{batch.samples[i]}, {batch.captions[i]}}, share).to(torch::kDouble);
    loss = loss.defined() ? loss + own : own;
    if (!exact) continue;
    exact_sum_.add_(bank_.gradients());
    bank_.zero_gradients();
  }
  ranks_.end();
  return loss;
}

// The loss stays where it was computed: reading it would wait for a GPU.
Tensor Trainer::backward(const TrainingBatch& batch, double weight) {
  // A text encoder that trains has adapters too. (Otherwise a recording must see its own
  // activation, in which plain layers' weights are summed.)
  std::vector<lightlora::Activation> active;
  if (parts_.prompts.trains()) active = activate();
  if (options_.cuda_graph && parts_.prompts.trains()) return replay(unread(batch), weight);
  const auto text = parts_.prompts.states(batch.captions);
  const LossInputs inputs = parts_.loss.inputs(batch.samples, text);
  return options_.cuda_graph ? replay(inputs, weight) : compute(inputs, weight);
}

// A batch whose captions are ids still.
LossInputs Trainer::unread(const TrainingBatch& batch) {
  const auto like = parts_.unet->parameters().front().options().requires_grad(false);
  const Tensor none = at::empty({0}, like);
  const bool pooled = parts_.unet->options.text_time();
  LossInputs inputs = parts_.loss.inputs(batch.samples, {none, pooled ? none : Tensor()});
  inputs.states = inputs.added.text_embeds = Tensor();
  inputs.ids = parts_.prompts.ids(batch.captions);
  return inputs;
}

// What the encoders make of a batch's ids, which belongs to the recording.
LossInputs Trainer::read(LossInputs inputs) const {
  const auto text = parts_.prompts.of_ids(inputs.ids);
  inputs.states = text.states;
  if (inputs.added.time_ids.defined()) inputs.added.text_embeds = text.pooled;
  return inputs;
}

// The activation spans the backward pass: checkpointed segments run again in it.
Tensor Trainer::compute(const LossInputs& given, double weight) {
  const auto active = activate();
  begin_phase("forward");
  const LossInputs inputs = given.ids.empty() ? given : read(given);
  const sd::GradientCheckpointing checkpointing(options_.gradient_checkpointing,
                                                /*preserve_rng_state=*/draws_);
  const Tensor loss = DiffusionLoss::of(parts_.unet, inputs) * weight;
  begin_phase("backward");
  scaler_.scaled(loss).backward();
  return loss.detach();
}

Tensor Trainer::replay(const LossInputs& inputs, double weight) {
  std::ostringstream shape;
  shape << inputs.noisy.sizes() << weight << inputs.mask.defined();
  if (inputs.states.defined()) shape << inputs.states.sizes();
  for (const auto& ids : inputs.ids) shape << ids.sizes();
  auto found = recorded_.find(shape.str());
  if (found == recorded_.end() && recorded_.size() == kMostRecordings)
    return compute(inputs, weight);
  Recorded& own = recorded_[shape.str()];
  if (!own.graph) {
    own.inputs = inputs.clone();
    own.loss = at::zeros({}, inputs.target.options());
    const auto device = inputs.noisy.device();
    own.graph = std::make_unique<cuda::Graph>(
        [this, &own, weight] {
          const Tensor loss = compute(own.inputs, weight);
          const torch::NoGradGuard no_grad;
          own.loss.copy_(loss);
        },
        device, device.is_cuda(),
        options_.require_cuda_graph ? cuda::Graph::OnFailure::fail
                                    : cuda::Graph::OnFailure::run_as_it_is);
  } else {
    own.inputs.copy_from(inputs);
  }
  if (own.graph->recorded()) begin_phase("replay");
  own.graph->run();
  return own.loss.clone();
}

// One exchange for everything that the processes have to agree on. Returns the mean loss and the
// sum of the votes to stop, where they were computed.
Tensor Trainer::average(const Tensor& loss, bool stop) {
  const torch::NoGradGuard no_grad;
  const Tensor vote = at::full({}, stop ? 1.0 : 0.0, loss.options());
  const bool exact = options_.batch_invariant;
  if (options_.group.size() == 1 && !exact) return at::stack({loss, vote});
  const Tensor& gradients = exact ? exact_sum_ : bank_.gradients();
  const Tensor numbers = at::stack({loss, vote}).to(gradients.scalar_type());
  options_.group.sum({gradients, numbers});
  const double parts = static_cast<double>(options_.group.size()) *
                       (exact ? static_cast<double>(parts_.instance.batch_size()) : 1.0);
  bank_.gradients().copy_(gradients / parts);
  numbers.select(0, 0).div_(parts);
  return numbers.to(torch::kDouble);
}

void Trainer::seed_dropout(int64_t index) const {
  auto seeds = generator_for(options_.seed, Stream::dropout, index);
  torch::manual_seed(seeds.current_seed());
}

// Alike in all processes, so that their mean has it too.
void Trainer::add_penalty() const {
  if (const Tensor penalty = ranks_.penalty(); penalty.defined())
    scaler_.scaled(penalty).backward();
}

// Everything that the host has to know is read at once, as each reading waits for the GPU: in a
// step that overflowed the gradients are clipped for nothing.
void Trainer::update(StepReport& report, const Tensor& loss_and_stop) {
  begin_phase("optimizer");
  const Tensor gradients_finite = scaler_.unscale(bank_.gradients());
  const Tensor norm = bank_.clip(options_.max_grad_norm);
  std::vector<Tensor> numbers{loss_and_stop, gradients_finite.view({1}), norm.view({1})};
  if (scaler_.enabled()) numbers.push_back(scaler_.scale_on_device().view({1}));
  for (auto& number : numbers) number = number.to(torch::kDouble);
  const Tensor read = at::cat(numbers).cpu();
  const auto* values = read.const_data_ptr<double>();
  report.loss = values[0];
  report.stop = values[1] > 0;
  const bool finite = values[2] != 0 && std::isfinite(report.loss);
  if (scaler_.enabled()) loss_scale_ = values[4];
  report.skipped = !finite;
  skipped_in_a_row_ = finite ? 0 : skipped_in_a_row_ + 1;
  skipped_ += finite ? 0 : 1;
  TORCH_CHECK(
      finite || (scaler_.enabled() && skipped_in_a_row_ < kMostSkippedSteps), "training: step ",
      done_ + 1, ": expected a finite loss and gradient, got ",
      std::isfinite(report.loss) ? "a gradient that is not"
                                 : fmt::format("the loss {}", report.loss),
      scaler_.enabled() ? fmt::format(" for the {}th step in a row", kMostSkippedSteps) : "",
      "; hint: lower --learning_rate, or train with --mixed_precision no or bf16");
  if (!finite) return;
  for (std::size_t i = 0; i < optimizers_.size(); ++i) {
    const auto& slice = bank_.slices()[i];
    optimizers_[i]->step(slice.values, slice.gradients, report.learning_rate * slice.rate_factor);
  }
  if (average_) average_->update();
  report.gradient_norm = values[3];
}

StepReport Trainer::step(const std::function<bool()>& asked_to_stop) {
  StepReport report;
  bank_.zero_gradients();
  if (options_.batch_invariant) exact_sum_.zero_();
  seed_dropout(done_ * options_.group.size() + options_.group.rank());
  const int64_t batches = options_.gradient_accumulation_steps;
  const double share = 1.0 / static_cast<double>(batches);
  std::vector<Tensor> losses;
  for (int64_t i = 0; i < batches; ++i) {
    const int64_t batch = done_ * batches + i;
    losses.push_back(backward(parts_.instance, batch, share));
    if (parts_.prior) {
      losses.push_back(backward(*parts_.prior, batch, share * options_.prior_loss_weight));
    }
  }
  report.learning_rate = learning_rate_.at(done_ - skipped_);
  const Tensor loss = at::stack(losses).to(torch::kDouble).sum();
  const Tensor numbers = average(loss, asked_to_stop && asked_to_stop());
  add_penalty();
  update(report, numbers);
  if (!report.skipped) ranks_.step(done_ - skipped_);
  ++done_;
  return report;
}

lightlora::TensorMap Trainer::state() const {
  lightlora::TensorMap state = scaler_.state("scaler.");
  state["steps"] = torch::tensor({done_, skipped_in_a_row_, skipped_}, torch::kLong);
  for (std::size_t i = 0; i < optimizers_.size(); ++i) {
    state.merge(optimizers_[i]->state(optimizer_prefix(i)));
  }
  if (average_) state.merge(average_->state());
  state.merge(ranks_.state());
  return state;
}

void Trainer::share_state() {
  if (options_.group.size() == 1) return;
  auto shared = state();
  std::vector<Tensor> tensors{bank_.values()};
  for (const auto& item : shared) tensors.push_back(item.second);
  options_.group.broadcast(tensors);
  if (!options_.group.is_main()) load_state(shared);
}

void Trainer::load_state(const lightlora::TensorMap& state) {
  for (std::size_t i = 0; i < optimizers_.size(); ++i) {
    optimizers_[i]->load_state(state, optimizer_prefix(i));
  }
  MovingAverage::restore_values(bank_, state);
  if (average_) average_->load_state(state);
  ranks_.load_state(state);
  scaler_.load_state(state, "scaler.");
  loss_scale_ = scaler_.scale();
  const auto steps = state.find("steps");
  // The first checkpoints did not count all skipped steps.
  const int64_t numbers = steps == state.end() ? 0 : steps->second.numel();
  TORCH_CHECK((numbers == 2 || numbers == 3) && steps->second.dim() == 1 &&
                  steps->second.scalar_type() == torch::kLong,
              "training: expected the number of steps in the state, got none");
  constexpr int64_t kMostSteps = int64_t{1} << 40;
  done_ = steps->second[0].item<int64_t>();
  skipped_in_a_row_ = steps->second[1].item<int64_t>();
  skipped_ = numbers == 3 ? steps->second[2].item<int64_t>() : 0;
  TORCH_CHECK(done_ >= 0 && done_ <= kMostSteps && skipped_in_a_row_ >= 0 &&
                  skipped_in_a_row_ <= kMostSkippedSteps && skipped_ >= 0 && skipped_ <= done_,
              "training: expected numbers of steps in the state, got ", done_, ", ",
              skipped_in_a_row_, " and ", skipped_, "; hint: the checkpoint is damaged");
}

}  // namespace training
