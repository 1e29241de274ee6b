"""The same job over a data set: in batches, resumable, into a folder that is read row by row.

    results = run(job, Dataset.open("data.parquet"), "results")

A job says what is done to a batch; the verbs of the house are in `termwise.jobs`. What a run leaves is read by `Results`.
"""

from .dataset import Dataset
from .job import Answers, Job, Row, RowResult
from .results import Results
from .run import ENGINES, TooManyErrors, run

__all__ = ["ENGINES", "Answers", "Dataset", "Job", "Results", "Row", "RowResult", "TooManyErrors", "run"]
