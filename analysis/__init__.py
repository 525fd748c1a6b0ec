"""From finished runs to tables and pictures: which change buys accuracy, at what cost, and is it real.

`frame` reads the run folders, `statistics` compares variants over seeds, `tables` and `plots` show it.
The package reads files only: it trains nothing, needs neither torch nor the package that made the runs,
and a notebook's cell is a call of it. Import the module that is needed; `plots` alone loads matplotlib.
"""
