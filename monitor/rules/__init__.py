"""Rules: what turns closed buckets of counts into verdicts. Pure; no rule knows where the counts come from.

`judge.py` is the protocol that every rule speaks, `registry.py` lists the kinds; each kind has a file of its own, with
its section of the configuration. `docs/how-to/add-a-rule.md` says how to add one.
"""
