"""How deployments and measurements are written: as JSON, in the `record` columns of the tables."""

from __future__ import annotations

from typing import Final

from neuroweaver.mesh.wire.records import Records

RECORDS: Final = Records()
