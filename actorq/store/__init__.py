"""One Queue.json that survives a crash. No word about processes.

    format.py        the two fixed lines: header and commit record; FORMAT.md tells the whole format
    log_writer.py    append a batch, bring it to disk
    log_reader.py    replay, then follow
    last_commit.py   where the log ends, found from the end of the file
    recovery.py      what stands behind it: torn or damaged, and what is done
    new_file.py      how a file gets its name only when it is whole
    locks.py         who may write, who hosts
    records.py       the lines between the commits
    fold.py          the state of the queue, which is a fold over them
    filesystem.py    the seam to the disk

Nothing is imported here: a reader of this package pays only for what it uses.
"""
