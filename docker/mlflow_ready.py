#!/usr/bin/env python
"""Search experiments as a client does, by the service's own name and with the admin's password.

The health check of `mlflow`: a wrong list of allowed hosts or a wrong password ends in status 1, where MLflow's /health
would answer 200.
"""

import base64
import urllib.request
from pathlib import Path

password = Path("/run/secrets/mlflow_admin_password").read_text(encoding="ascii").strip()
credentials = base64.b64encode(f"admin:{password}".encode()).decode("ascii")
request = urllib.request.Request(
    "http://mlflow:5000/api/2.0/mlflow/experiments/search?max_results=1",
    headers={"Authorization": f"Basic {credentials}"},
)
with urllib.request.urlopen(request, timeout=8) as answer:
    print(answer.status)
