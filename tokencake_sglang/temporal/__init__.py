"""WHEN: how long a tool call lasts, when its KV leaves the device and when it comes back. Pure."""
