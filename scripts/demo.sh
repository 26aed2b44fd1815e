#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The demo: draws a prompt, teaches the model a subject, draws the prompt again.
#   scripts/demo.sh <folder of the programs>
set -euo pipefail
cd "$(dirname "$0")/.."
exec "$1/demo" --model examples/assets/base --subject examples/assets/teddy_bear --output demo
