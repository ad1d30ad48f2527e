"""Three sites and a network between them, of which every value differs: what the tests of the WAN's parts share."""

from __future__ import annotations

from discovery_deploy.experiment.model import Network

NAMES = ("ares", "brest", "cork")
DEVICES = {"ares": "vec0", "brest": "vec1", "cork": "vec2"}
SUBNETS = {"ares": "10.218.0.0/24", "brest": "10.218.1.0/24", "cork": "10.218.2.0/24"}
MIXED_NETWORK = Network.model_validate(
    {
        "default": {"delay": "25 ms"},
        "constraints": [
            {"from": "ares", "to": "brest", "delay": "37.5 ms", "jitter": "5 ms", "loss": "0.1 %", "rate": "20 Mbit/s"},
            {"from": "brest", "to": "ares", "delay": "1.234567 ms", "rate": "12345.678 kbit/s"},
            {"between": ["ares", "cork"], "delay": "0 ms"},
            {"from": "cork", "to": "brest", "loss": "12.3456 %", "rate": "1 kbit/s"},
        ],
    }
)
