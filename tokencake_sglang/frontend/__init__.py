"""SGLang's frontend language, agent-aware. Imports sglang.lang only."""
