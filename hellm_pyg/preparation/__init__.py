"""From a shop's tables or Amazon's reviews to a folder that recipes read."""

from hellm_pyg.preparation.amazon import prepare_amazon
from hellm_pyg.preparation.encoding import Encoding
from hellm_pyg.preparation.folder import Prepared
from hellm_pyg.preparation.table import prepare_table

__all__ = ['Encoding', 'Prepared', 'prepare_amazon', 'prepare_table']
