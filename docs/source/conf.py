"""Sphinx configuration."""

import hellm_pyg

project = 'hellm_pyg'
author = 'The hellm_pyg authors'
copyright = f'2026, {author}'
release = hellm_pyg.__version__
extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx.ext.mathjax',
    'sphinx.ext.intersphinx',
]
intersphinx_mapping = {
    'torch': ('https://docs.pytorch.org/docs/stable', None),
    'torch_geometric': ('https://pytorch-geometric.readthedocs.io/en/latest', None),
}
html_theme = 'pydata_sphinx_theme'
