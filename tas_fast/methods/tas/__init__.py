"""TAS: Network Pruning via Transformable Architecture Search (Dong & Yang, NeurIPS 2019)."""

from tas_fast.methods.tas.method import TAS
from tas_fast.methods.tas.objective import CostTable, macs_loss, temperature
from tas_fast.methods.tas.sampling import Choice
from tas_fast.methods.tas.search_space import SearchSpace, width_candidates
from tas_fast.methods.tas.supernet import Supernet

__all__ = ["TAS", "Choice", "CostTable", "SearchSpace", "Supernet", "macs_loss", "temperature", "width_candidates"]
