"""Parts of the side-by-side benchmark `tools/benchmarks/frontier.py`.

`cases` (models and data), `contenders` (who competes, with which settings), `measure` (a process of its
own, timed), `judge` (one evaluator for all), `results` and `charts` run here. The peers themselves,
`peer_*`, run in a virtual environment of their own (`peers`), and know of nothing but the model,
the calibration samples and the MACs that are to be left.
"""
