"""A page of results: what a folder of runs holds, as one HTML file that needs no network.

python -m analysis.report FOLDER          (make report RESULTS=FOLDER)

runs       every run's folder, finished or not
tables     the tables of a suite, or of single runs, ready to sort
curves     charts of loss and score, over forwards or seconds
details    one run: its numbers, configuration, commit, machine and log
figures    the images beside the runs, with their captions
parts      one part of the page for each suite, one for the single runs
libraries  what draws and sorts: Plotly, DataTables
page       template/ filled in
"""
