// SPDX-License-Identifier: Apache-2.0
// The table of docs/speed.md, row by row.
#include <lightlora/detail/choose_path.h>

#include "support.h"

using lightlora::choose_path;
using lightlora::Path;
using lightlora::Route;
using lightlora::Situation;

namespace {

constexpr Route kAll[] = {Route::automatic, Route::bypass, Route::merged};

// Training in fp32 with factors, of a 320x320 layer with few rows.
Situation few_rows() {
  Situation s;
  s.rows = 100;
  s.in = s.out = 320;
  return s;
}

}  // namespace

TEST_CASE("paths: training merges from kappa in out / (in + out) rows on", "[paths]") {
  Situation s = few_rows();
  s.rows = 320;
  CHECK(choose_path(s, Route::automatic) == Path::bypass);
  s.rows = 321;
  CHECK(choose_path(s, Route::automatic) == Path::merged);
  s.thin = true;
  s.rows = 960;
  CHECK(choose_path(s, Route::automatic) == Path::bypass);
  s.rows = 961;
  CHECK(choose_path(s, Route::automatic) == Path::merged);
}

TEST_CASE("paths: half precision never merges by itself", "[paths]") {
  Situation s = few_rows();
  s.half = true;
  s.rows = 100000;
  CHECK(choose_path(s, Route::automatic) == Path::bypass);
  CHECK(choose_path(s, Route::merged) == Path::merged);
  s.training = s.gradients = false;
  CHECK(choose_path(s, Route::automatic) == Path::bypass);
  CHECK(choose_path(s, Route::merged) == Path::kept_merged);
}

TEST_CASE("paths: evaluation without gradients keeps a merged weight", "[paths]") {
  for (const bool training : {false, true}) {
    for (const bool gradients : {false, true}) {
      Situation s = few_rows();
      s.training = training;
      s.gradients = gradients;
      const bool keeps = !training && !gradients;
      CHECK((choose_path(s, Route::automatic) == Path::kept_merged) == keeps);
      CHECK((choose_path(s, Route::merged) == Path::kept_merged) == keeps);
      CHECK(choose_path(s, Route::bypass) == Path::bypass);
    }
  }
}

TEST_CASE("paths: dropout and variants without factors are computed by parts", "[paths]") {
  for (const Route route : kAll) {
    Situation s = few_rows();
    s.dropping = true;
    CHECK(choose_path(s, route) == Path::by_parts);
    s = few_rows();
    s.factors = false;
    CHECK(choose_path(s, route) == Path::by_parts);
    s.training = s.gradients = false;
    CHECK((choose_path(s, route) == Path::kept_merged) == (route != Route::bypass));
  }
}

TEST_CASE("paths: a packed weight is used wherever the weight is not merged", "[paths]") {
  Situation s = few_rows();
  s.packed = true;
  s.rows = 100000;
  CHECK(choose_path(s, Route::automatic) == Path::packed);
  CHECK(choose_path(s, Route::bypass) == Path::packed);
  CHECK(choose_path(s, Route::merged) == Path::merged);
  s.half = true;
  CHECK(choose_path(s, Route::automatic) == Path::packed);
}
