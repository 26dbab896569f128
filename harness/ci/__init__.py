"""What continuous integration reads: JUnit XML, GitHub's step summary and annotations, one writer each for all parts of a run.

Everything is drawn from the record. `outputs.py` is the one place that commands call; `policy.py` says what fails a job.
"""
