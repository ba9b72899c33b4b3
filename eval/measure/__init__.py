"""The measurement: from images to ranks and counts.

engine.py     decodes each image once and computes the predictions of every form
journal.py    records on disk, so that an interrupted run can continue
early.py      --stop-early
processes.py  a run over several processes
metrics.py    ranks, counts, confidence intervals
progress.py   progress events and the progress bar
settings.py   global settings of torch and OpenCV during an evaluation
"""
