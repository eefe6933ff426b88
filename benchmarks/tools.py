"""Other people's programs that are measured beside the agent."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.servers import S3Server

TOOLS = Path(sys.executable).parent


def aws_environment(server: S3Server) -> dict[str, str]:
    """For tools that take what AWS's own take, and nothing of whoever runs the benchmark."""
    return {
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
    }
