"""Asks the API server where the Kubernetes node is, and writes "region.zone" into a file."""

import json
import os
import ssl
import sys
import urllib.request
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def main() -> None:
    """See the module's docstring. NODE_NAME names the node, the one argument the file."""
    token = (ACCOUNT / "token").read_text("utf-8")
    request = urllib.request.Request(
        f"https://kubernetes.default.svc/api/v1/nodes/{os.environ['NODE_NAME']}",
        headers={"Authorization": f"Bearer {token}"},
    )
    context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    with urllib.request.urlopen(request, timeout=10, context=context) as answer:
        labels = json.load(answer)["metadata"].get("labels", {})
    Path(sys.argv[1]).write_text(location_of(labels), "utf-8")


def location_of(labels: dict[str, str]) -> str:
    """From a node's labels; "" if it has none of these. Dots would look like further parts."""
    parts = [labels.get(f"topology.kubernetes.io/{part}", "") for part in ("region", "zone")]
    return ".".join(part.replace(".", "-") for part in parts if part)


if __name__ == "__main__":
    main()
