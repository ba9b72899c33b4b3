"""What a run leaves behind.

write.py              CSV and JSON files, and the table on stdout
read.py               results read back, and checked
html.py               report.html, with plots.py and calibration.py
predictions.py        predictions that another device or runtime made
regression_report.py  a comparison of two results, told
files.py              atomic writing
"""
