"""What an interrupted run over many files had done: a JSON line per file, in the order of the files."""

import json


def resume(journal, files, whole=lambda row: None):
    """
    Cuts off what follows the last whole row of the same, unchanged files, and leaves the journal open at its end.

    Args:
        journal: a text file open to read and append; each row has `image` and `stamp`.
        files (iterable of `tuple`): the name and stamp (see [`file_stamp`]) of each file of this run.
        whole (callable, *optional*): receives each row that stays.

    Returns:
        `int`: how many rows stay.
    """
    journal.seek(0)
    rows, end, files = 0, 0, iter(files)
    while (line := journal.readline()).endswith("\n"):
        try:
            row = json.loads(line)
            if (row["image"], row["stamp"]) != next(files, None):
                break
            whole(row)
        except (ValueError, KeyError, TypeError):
            break
        rows, end = rows + 1, journal.tell()
    journal.seek(end)
    journal.truncate()
    return rows
