"""Pictures of finished runs, by question; functions take frames and give matplotlib axes.

`accuracy`: accuracy against what it costs. `ladder`: what each step changed. `slots`: main
effects and interactions of a factorial, and what slots cost. `profile`: what each variant can do, and how far.
`prediction`: whether probes tell what a mixer is worth elsewhere.
`curves`: how training went. `inside`: what a network looks at, and answers that are pictures. The only modules of the
package that load matplotlib, which `plt` is.
"""

from matplotlib import pyplot as plt

from .accuracy import (
    accuracy_by_variant,
    accuracy_vs,
    accuracy_vs_latency,
    accuracy_vs_state,
    backends,
    picture,
    published_front,
)
from .curves import learning_curves
from .inside import examples, receptive_fields
from .ladder import waterfall
from .prediction import correlations, worth_by_level
from .profile import dial_curves, profile_map
from .slots import cell_means, interactions, main_effects, slot_costs
from .theme import save
