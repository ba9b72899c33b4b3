"""Which images there are, what they show, and their pixels.

valset.py      opens a validation set: its images, labels and bytes
layouts/       the ways in which people keep one: folders, tar, parquet
labels.py      the official labels, and label files
classes.py     the classes that a model tells apart, in index order
sets.py        ImageNet's validation set, and the test sets made since
preprocess.py  from the bytes of a file to the model's input, bit for bit
cache.py       crops kept on disk
"""
