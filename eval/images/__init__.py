"""The images: which there are, their labels, and their pixels.

valset.py      opens a validation set: its images, labels and bytes
layouts/       how a set may be stored: folders, archives, Arrow and parquet
labels.py      the official labels, and label files, whose forms lists.py reads
classes.py     the classes of a model, in index order
labelset.py    which predictions are correct: the set's own labels, or ReaL
sets.py        ImageNet's validation set, and third-party test sets
preprocess.py  from the bytes of a file to the model's input, as a recipe says (eval/recipe.py)
jpeg.py        the same for ordinary JPEGs, in fewer steps
cache.py       crops kept on disk
survey.py      checks every image of a set before it is evaluated
text.py        small text files, and names fit for a message
"""
