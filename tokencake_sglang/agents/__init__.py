"""WHO: applications, agents, their tool calls and their states. Pure: no sglang, no torch, no clock."""
