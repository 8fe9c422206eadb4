"""Alerts to people and machines: one file per receiver, and the dispatcher that delivers what the outbox holds.

A receiver gets every alert document at least once, always with the same id, and reports the outcome of each try; the
dispatcher decides when and how often to try again.
"""
