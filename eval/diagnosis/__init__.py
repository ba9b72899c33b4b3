"""Why is an accuracy wrong? Known mistakes are tried on a sample, one change at a time.

    pixels.py       the crops of many recipes from one image; recipes in another library
    setups.py       a setup: everything between an image file and a prediction
    edits.py        changes to a model
    orders.py       orders in which a model may number the classes
    hypotheses.py   the table of known mistakes
    bench.py        the predictions of setups, each image decoded once for all of them
    search.py       which setups are tried on how many images, and what follows
    report.py       text and JSON
    page.py         the HTML page

Nothing here prints; `eval.diagnose` is the command.
"""

IMAGES = 500  # of a validation set, unless another number is asked for
