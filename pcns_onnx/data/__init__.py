"""Calibration and evaluation data as users have it, streamed in batches that fit the model.

    source ─sources→ [Part of Columns] ─conform→ checked, converted rows ─dataset→ Batch, Batch, ...

A `Column` is one array read in runs of rows, a `Part` is the columns of some consecutive samples (a file, a
feed), and a `Dataset` is any number of parts, re-cut into batches of one size. Every pass starts afresh and
gives the same samples in the same order, and memory is bounded by the batch, never by the data. Whatever is
wrong with the data is one `InputError` of one line: what, where, what to do.
"""
