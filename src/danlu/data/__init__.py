"""From files and databases to clean, split, tokenised rows.

Importing this package turns the usage reporting of its dependencies off unless
the user has set the variables otherwise: nothing phones home.
"""

import os

for _name, _value in {
    "SCARF_NO_ANALYTICS": "1",
    "DO_NOT_TRACK": "true",
    "DAFT_ANALYTICS_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DAFT_PROGRESS_BAR": "0",  # danlu draws its own
}.items():
    os.environ.setdefault(_name, _value)
