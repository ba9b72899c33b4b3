"""The measurement.

engine.py     decodes every image once and asks every form about it
journal.py    what was measured so far, kept on disk
processes.py  one run spread over several processes
metrics.py    ranks, counts, intervals
progress.py   the progress bar
"""
