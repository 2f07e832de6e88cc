"""The stage `frontier`: which method makes the model least toxic, where all cost the same fluency.

It is off by default. Methods are fitted on labelled sentences in the source language, and turned up on some of the
study's prompts and held-out texts. Those that need a tuned model take the one that the study tuned.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
from datasets import Dataset

from xlingtox import files, processes
from xlingtox.data.columns import labelled_texts
from xlingtox.frontiers.frontier import frontier as measured
from xlingtox.frontiers.result import Frontier
from xlingtox.methods.method import Method
from xlingtox.models.hooked import HookedLM
from xlingtox.study.frontier_settings import NEEDS_TUNED
from xlingtox.study.frontier_summary import FrontierSummary, content_of
from xlingtox.study.in_progress import InProgress
from xlingtox.study.settings import first_rows
