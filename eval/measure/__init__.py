"""The measurement: from images to ranks and counts.

engine.py       a model in its runtime, and the loop over the batches of a run
batch.py        a batch: read, decoded, cropped, given to every form, and scored
measurement.py  the results, and how those of several processes become one
reading.py      the bytes and crops of images, by threads
cores.py        how many processes, threads and images at a time suit a machine
crew.py         the other processes of a run, each of which is a member.py
journal.py      records on disk, so that an interrupted run can continue
setup.py        from a request to what is measured and how
identity.py     what a result belongs to
settings.py     global settings of torch and OpenCV during an evaluation
latency.py      how long one image takes
given/          predictions that were made elsewhere
"""
