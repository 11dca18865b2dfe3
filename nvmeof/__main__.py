"""``python -m nvmeof``."""

from __future__ import annotations

import sys

from nvmeof.cli.main import main

sys.exit(main())
