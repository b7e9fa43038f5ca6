"""Renders results as Markdown, LaTeX and a self-contained page.

    python -m benchmarks.report benchmarks/results/table3_reduced
    python -m benchmarks.report benchmarks/results/table1 benchmarks/results/table3 \\
        --baseline lightgcn --baseline item_knn

Writes ``RESULTS.md``, ``RESULTS.tex`` and ``RESULTS.html`` into the folder, or into
what several folders have in common. Every number comes from a JSON file that
``benchmarks.run`` (or ``benchmarks.peers``) has left there, or from
``benchmarks/paper/expected.json`` (printed values of others, marked as such). Slices
need ``HELLM_DATA`` the first time. A ``NOTES.md`` of a folder stands on top of its
part. All cells, of a grid its best point on validation, are compared with the best on
validation and with the base, which the table's file or ``--baseline`` names. What was
read on validation alone (``protocols: []``) becomes a ladder: each cell with what it
changes against the base.
A folder that is called ``search`` is of ``benchmarks.search``, and becomes a page of
all budgets, spaces and trials; the winners behind the recipes of a table are told with
it. What was trained on the validation items, too, stands in tables of its own. Neither
that nor what is outdated, which has a mark, is tested against the rest.
"""
