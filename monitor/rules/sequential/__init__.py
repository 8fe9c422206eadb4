"""The sequential rule: drift alarms with a proven bound on false alarms, evaluated after every bucket.

A mixture e-Shiryaev-Roberts statistic R per stream (Shin, Ramdas and Rinaldo, "E-detectors", 2022). Each component j
bets, for one signal and one cut of its p-values, that the share of images beyond the cut is q instead of at most p0
(upward) or at least p0 (downward; not for learned signals, where more normal than normal is no drift):

    R_j <- (R_j + g) * (q/p0)^(c/D) * ((1-q)/(1-p0))^((m-c)/D)       m images, c beyond the cut, g seconds
    alarm when sum_j w_j R_j >= A;  all R_j = 0

In distribution each R_j minus the seconds elapsed is a supermartingale, and so is the weighted sum: at most H / A false
alarms are expected in H seconds, for all signals of the rule together, because their weights add up to 1. p0 covers
the finite calibration set with confidence 1 - delta and is tightened from the stream's own normal images. After an
alarm a reverse statistic on the signal that caused it detects when less than half of the drift is left. The formulas,
the proof and the measured tables are in docs/explanation/statistics.md.

    rule = Sequential(signals=("ood",), seconds_per_false_alarm=fleet_budget_s(streams=200))
    state = initial(rule, layout, streams=200)
    state, verdicts = advance(rule, layout, state, bucket_ms, vectors)        # vectors (200, V), once per closed bucket

`plan.py` holds the parameters, `rows.py` the row stored per stream, `detector.py` the statistic, `ending.py` its
reverse, `verdicts.py` their explanation in words; `rule.py` connects them to the configuration.
"""
