// SPDX-License-Identifier: Apache-2.0
// The simulated device must see what a GPU would punish. Each mutant is a training step with one
// mistake that the CPU forgives; the step without one is in the list too, and must pass.
#include <c10/core/CachingDeviceAllocator.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <functional>
#include <string>

#include "support.h"
#include "support/fake_cuda/fake_cuda.h"

namespace {

using torch::Tensor;

const torch::Device kFirst(torch::kCUDA, 0), kOther(torch::kCUDA, 1);

// What a step is made of; a mutant replaces one piece.
struct Step {
  torch::Device device;
  std::function<Tensor(const Tensor& host)> upload = [this](const Tensor& t) {
    return t.to(device);
  };
  std::function<Tensor(const Tensor& steps)> weights = [this](const Tensor& steps) {
    return torch::linspace(1, 2, 10).to(device).index_select(0, steps);
  };
  std::function<Tensor(const Tensor& like)> noise = [this](const Tensor& like) {
    return torch::randn(like.sizes(), at::detail::createCPUGenerator(7),
                        like.options().device(torch::kCPU))
        .to(device);
  };
  std::function<Tensor(const Tensor& shape)> scratch = [](const Tensor& t) {
    return torch::zeros_like(t);
  };
  std::function<float(const Tensor& loss)> read = [](const Tensor& loss) {
    return loss.item<float>();
  };
  std::function<std::vector<int64_t>()> steps = [] { return std::vector<int64_t>{3, 9}; };

  explicit Step(torch::Device d) : device(d) {}
  Step(const Step&) = delete;

  float loss() {
    torch::manual_seed(1);
    torch::nn::Linear model(6, 6);
    model->to(device);
    const auto x = upload(torch::rand({2, 6}));
    const auto t = torch::tensor(steps()).to(device);
    const auto target = noise(x);
    auto sum = scratch(x);
    sum += model(x + target);
    const auto loss = ((sum - target).square().mean(1) * weights(t)).mean();
    loss.backward();
    model->weight.data().sub_(model->weight.grad(), 0.1);
    return read(loss) + read(model->weight.sum());
  }
};

float on_cpu() { return Step(torch::kCPU).loss(); }

struct Mutant {
  const char* name;
  void (*apply)(Step&);
  const char* message;  // of the error; empty: no error, but another result than the CPU's
};

const Mutant kMutants[] = {
    {"forgets to move a batch to the device",
     [](Step& s) { s.upload = [](const Tensor& t) { return t; }; },
     "Expected all tensors to be on the same device"},
    {"forgets to move a table to the device",
     [](Step& s) {
       s.weights = [](const Tensor& t) { return torch::linspace(1, 2, 10).index_select(0, t); };
     },
     "self is on cpu"},
    {"moves a batch to the other device",
     [](Step& s) { s.upload = [](const Tensor& t) { return t.to(kOther); }; }, "cuda:1"},
    {"moves to whichever device is current",
     [](Step& s) {
       s.upload = [](const Tensor& t) {
         const c10::DeviceGuard guard(kOther);
         return t.to(torch::kCUDA);
       };
     },
     "cuda:1"},
    {"keeps a vector of weights on the CPU",
     [](Step& s) { s.weights = [](const Tensor&) { return torch::ones({2}); }; }, "is on cpu"},
    {"draws on the device with a generator of the CPU",
     [](Step& s) {
       s.noise = [](const Tensor& like) {
         return torch::randn(like.sizes(), at::detail::createCPUGenerator(7), like.options());
       };
     },
     "Expected a 'cuda' device type for generator but found 'cpu'"},
    {"draws with the generator of the other device",
     [](Step& s) {
       s.noise = [](const Tensor& like) {
         return torch::randn(like.sizes(), at::globalContext().defaultGenerator(kOther),
                             like.options());
       };
     },
     "expected a generator of cuda:0, got one of cuda:1"},
    {"draws from the device's sequence in place of the CPU's",
     [](Step& s) { s.noise = [](const Tensor& like) { return torch::randn_like(like); }; }, ""},
    {"uses an index beyond a table",
     [](Step& s) { s.steps = [] { return std::vector<int64_t>{3, 10}; }; }, "index out of range"},
    {"views more than there is",
     [](Step& s) {
       s.upload = [](const Tensor& t) {
         auto moved = t.to(kFirst);
         moved.unsafeGetTensorImpl()->set_sizes_and_strides(at::IntArrayRef{2, 6},
                                                            at::IntArrayRef{600, 1});
         return moved;
       };
     },
     "illegal memory access"},
    {"reads memory that was never written",
     [](Step& s) { s.scratch = [](const Tensor& t) { return torch::empty_like(t); }; }, ""},
    {"reads memory that was released",
     [](Step& s) {
       s.upload = [](const Tensor& t) {
         auto owner = t.to(kFirst);
         return torch::from_blob(owner.data_ptr(), owner.sizes(), owner.options());
       };
     },
     "released before this use"},
};

Step& with(Step& step, const Mutant& mutant) {
  mutant.apply(step);
  return step;
}

// What `work` writes to standard error, run in a process of its own that it ends.
std::pair<int, std::string> last_words(const std::function<void()>& work) {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], 2);
    fake_cuda::report_host_accesses();
    work();
    _exit(0);
  }
  close(ends[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;) text.append(buffer, n);
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  return {status, text};
}

}  // namespace

TEST_CASE("the step without a mistake has the CPU's result on both devices", "[mutants]") {
  CHECK(Step(kFirst).loss() == on_cpu());
  CHECK(Step(kOther).loss() == on_cpu());
}

TEST_CASE("every mutant that computes is caught", "[mutants]") {
  for (const auto& mutant : kMutants) {
    INFO("the step " << mutant.name);
    Step step(kFirst);
    if (*mutant.message) {
      CHECK_THROWS_WITH(with(step, mutant).loss(), ContainsSubstring(mutant.message));
    } else {
      CHECK_FALSE(with(step, mutant).loss() == on_cpu());
    }
  }
}

TEST_CASE("the CPU forgives nearly all of them, which is why the device is there", "[mutants]") {
  int forgiven = 0;
  for (const auto& mutant : kMutants) {
    Step step(torch::kCPU);
    try {
      mutant.apply(step);
      step.loss();
      ++forgiven;
    } catch (const std::exception&) {
    }
  }
  CHECK(forgiven >= 4);
}

TEST_CASE("statistics of a device without an index are refused", "[mutants]") {
  auto* allocator = c10::getDeviceAllocator(torch::kCUDA);
  const auto index = torch::Device(torch::kCUDA).index();
  CHECK_THROWS_WITH(allocator->getDeviceStats(index), ContainsSubstring("Invalid device"));
  CHECK_THROWS_WITH(allocator->resetPeakStats(index), ContainsSubstring("Invalid device"));
  CHECK_NOTHROW(allocator->getDeviceStats(kOther.index()));
}

TEST_CASE("a raw pointer into the device's memory ends the program at its line", "[mutants]") {
  const auto x = torch::ones({4}, kFirst), y = torch::ones({4}, kOther);
  using Touch = std::function<void()>;
  const std::pair<const char*, Touch> touches[] = {
      {"cuda:0", [&] { std::fprintf(stderr, "%f", *static_cast<const float*>(x.data_ptr())); }},
      {"cuda:1", [&] { *static_cast<float*>(y.data_ptr()) = 2; }},
      {"cuda:0", [&] { std::fprintf(stderr, "%f", x.accessor<float, 1>()[2]); }},
      {"cuda:0", [&] {
         const auto copy =
             torch::from_blob(x.data_ptr(), {4}, torch::TensorOptions(torch::kCPU)).clone();
         std::fprintf(stderr, "%f", copy.data_ptr<float>()[0]);
       }}};
  for (const auto& [device, touch] : touches) {
    const auto [status, text] = last_words(touch);
    CAPTURE(device, text);
    CHECK(WIFSIGNALED(status));
    CHECK(WTERMSIG(status) == SIGSEGV);
    CHECK(text.find(std::string("host code touched memory of ") + device) != std::string::npos);
  }
}
