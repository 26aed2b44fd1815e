# SPDX-License-Identifier: Apache-2.0
"""Runs rules: functions that yield a line for each place that breaks them."""


def run(rules, names):
    """The exit status over these rules, or over those of these names; prints what breaks each."""
    broken = 0
    for rule in rules:
        if names and rule.__name__ not in names:
            continue
        offenders = list(rule())
        broken += len(offenders)
        print(f"{rule.__name__}: {'ok' if not offenders else len(offenders)}", *offenders, sep="\n  ")
    return 1 if broken else 0
