"""Rules: they turn closed buckets of counts into verdicts. Pure; `docs/how-to/add-a-rule.md` says how to add one.

`rule.py` is the base class of every kind, `registry.py` lists the kinds.
"""
