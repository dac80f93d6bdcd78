"""Candidates that are deployed as TFLite: attacked, weighed and verified as the .tflite file that was made of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from crushproof.audit.api import audit
from crushproof.audit.plan.plan import Plan, parse_plan
from crushproof.audit.subject.preflight import preflight
from crushproof.targets.errors import InputError
