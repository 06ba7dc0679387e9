"""A multi-agent application that writes code, on stock SGLang and on SGLang with TokenCake."""
