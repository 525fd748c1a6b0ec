"""Tasks by name; importing this registers those that ship with the project."""

from . import broadcast, forecasting, local, recall, relation, scenes, segmentation, shapes, strips, superresolution
from .probe import Probe, ProbeConfig
from .streams import Streams, shuffled
from .task import (
    NOT_ASKED,
    TASKS,
    Head,
    Metric,
    Task,
    TaskConfig,
    asked,
    build_task,
    fingerprint,
    register,
    resolve_task,
    sums,
)
