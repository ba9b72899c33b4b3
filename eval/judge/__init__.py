"""From counts to an answer.

verdict.py  is this the reported accuracy?
gate.py     is this result worse than that one?
"""
