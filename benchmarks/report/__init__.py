"""Renders results as Markdown, LaTeX and a self-contained page.

    python -m benchmarks.report benchmarks/results/beauty
    python -m benchmarks.report benchmarks/results/table1 benchmarks/results/table3 \\
        --baseline lightgcn --baseline item_knn

Writes ``RESULTS.md``, ``RESULTS.tex`` and ``RESULTS.html`` into the folder, or into
what several folders have in common. Every number comes from a JSON file that
``benchmarks.run`` (or ``benchmarks.peers``) has left there, or from
``benchmarks/paper/expected.json`` (printed values of others, marked as such). Slices
need ``HELLM_DATA`` the first time. A ``NOTES.md`` of a folder stands on top of its
part; the searches in ``search/`` beside the folders are told, too.
"""
