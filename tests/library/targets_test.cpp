// SPDX-License-Identifier: Apache-2.0
#include <lightlora/regex.h>
#include <lightlora/targets.h>

#include "support.h"

using lightlora::matches;
using lightlora::Pattern;
using lightlora::TargetLayer;
using lightlora::Targets;

namespace {

using Paths = std::vector<std::string>;
const std::vector<TargetLayer> kLayers{{"enc.0.attn.to_q", "Linear", ""},
                                       {"enc.0.attn.to_k", "Linear", ""},
                                       {"enc.0.attn.to_out.0", "Linear", ""},
                                       {"enc.1.attn.to_q", "Linear", ""},
                                       {"to_q", "Linear", ""},
                                       {"not_to_q", "Conv2d", ""},
                                       {"memory", "torch::nn::LSTMImpl", "a recurrent layer"}};

}  // namespace

TEST_CASE("a name selects the path itself and paths that end in it at a dot", "[targets]") {
  CHECK(Targets{"to_q"}.select(kLayers) == Paths{"enc.0.attn.to_q", "enc.1.attn.to_q", "to_q"});
  CHECK(Targets{"to_out.0"}.select(kLayers) == Paths{"enc.0.attn.to_out.0"});
  CHECK(Targets{"enc.1.attn.to_q"}.select(kLayers) == Paths{"enc.1.attn.to_q"});
}

TEST_CASE("selection keeps the model's order and counts each pattern", "[targets]") {
  std::vector<Targets::Hits> hits;
  CHECK(Targets{"to_k", "to_q"}.select(kLayers, &hits) ==
        Paths{"enc.0.attn.to_q", "enc.0.attn.to_k", "enc.1.attn.to_q", "to_q"});
  REQUIRE(hits.size() == 2);
  CHECK(hits[0].pattern == "to_k");
  CHECK(hits[0].count == 1);
  CHECK(hits[1].count == 3);
}

TEST_CASE("regular expressions match whole paths", "[targets]") {
  CHECK(Targets{matches("enc\\.[01]\\..*to_q")}.select(kLayers) ==
        Paths{"enc.0.attn.to_q", "enc.1.attn.to_q"});
  CHECK_THROWS_WITH(
      matches("to_(q"),
      ContainsSubstring("'to_(q': expected ')' in a regular expression, got its end"));
  CHECK_THROWS_WITH(matches("(?!enc).*"), ContainsSubstring("expected a plain group"));
}

TEST_CASE("a regular expression over a long path takes time in proportion to it", "[targets]") {
  // std::regex would take longer than the universe has lasted, or fill the stack.
  const std::string path(20'000, 'a');
  CHECK_FALSE(matches("(a*)*b").selects({path, "Linear", ""}));
  CHECK(matches("(a|aa)+").selects({path, "Linear", ""}));
}

TEST_CASE("predicates see the path or the layer; all() and all_linear() need no names",
          "[targets]") {
  CHECK(Targets::all().select(kLayers).size() == 6);
  CHECK(Targets::all_linear().exclude({"to_q"}).select(kLayers) ==
        Paths{"enc.0.attn.to_k", "enc.0.attn.to_out.0"});
  const auto convolution = [](const TargetLayer& layer) { return layer.type == "Conv2d"; };
  CHECK(Targets{Pattern("convolutions", convolution)}.select(kLayers) == Paths{"not_to_q"});
  const auto first = [](const std::string& path) { return path.rfind("enc.0", 0) == 0; };
  CHECK(Targets{Pattern("first encoder", first)}.select(kLayers).size() == 3);
}

TEST_CASE("excludes win over includes", "[targets]") {
  CHECK(Targets{"to_q"}.exclude({"enc.1.attn.to_q", "enc.0.attn.to_q"}).select(kLayers) ==
        Paths{"to_q"});
  CHECK_THROWS_WITH(Targets{"to_k"}.exclude({"to_k"}).select(kLayers),
                    ContainsSubstring("every selected layer is excluded"));
}

TEST_CASE("a pattern that matches nothing is an error that lists close names", "[targets]") {
  CHECK_THROWS_WITH(Targets({"to_qq"}).select(kLayers),
                    ContainsSubstring("target 'to_qq': expected at least one layer") &&
                        ContainsSubstring("nearest names are 'to_q'"));
  CHECK_THROWS_WITH(Targets({"to_q"}).exclude({"to_v"}).select(kLayers),
                    ContainsSubstring("target 'to_v'"));
  CHECK_THROWS_WITH(Targets({"to_q"}).rank("ff", 2).select(kLayers),
                    ContainsSubstring("target 'ff'"));
  CHECK_THROWS_WITH(Targets().select(kLayers), ContainsSubstring("expected at least one target"));
}

TEST_CASE("a pattern that names a refused layer says why it is refused", "[targets]") {
  CHECK_THROWS_WITH(Targets({"memory"}).select(kLayers),
                    ContainsSubstring("target 'memory': expected a layer that can be adapted, got "
                                      "'memory', a torch::nn::LSTMImpl: a recurrent layer"));
}

TEST_CASE("rank and alpha patterns: the first match counts", "[targets]") {
  const auto targets =
      Targets{"to_q"}.rank("enc.0.attn.to_q", 8).rank("to_q", 2).alpha("enc.1.attn.to_q", 3.5);
  CHECK(targets.rank_of("enc.0.attn.to_q", 4) == 8);
  CHECK(targets.rank_of("to_q", 4) == 2);
  CHECK(targets.rank_of("to_k", 4) == 4);
  CHECK(targets.alpha_of("enc.1.attn.to_q") == 3.5);
  CHECK_FALSE(targets.alpha_of("to_q"));
}
